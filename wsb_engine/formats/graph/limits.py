"""What a model file may ask for. Every limit is checked before memory is taken or work is done."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds that no classifier in use comes near, and a hostile file would have to pass."""

    file_bytes: int = 2**31 - 1
    """Largest message that protobuf itself can hold."""
    nodes: int = 50_000
    """After local functions are inlined."""
    initialisers: int = 100_000
    functions: int = 10_000
    nesting: int = 16
    """Subgraphs within subgraphs, and functions that call functions."""
    attributes: int = 256
    """Of one node."""
    name_bytes: int = 4096
    string_bytes: int = 1 << 20
    """Of one string attribute."""
    rank: int = 32
    tensor_elements: int = 2**31
    """Of any value that the graph computes."""
    folded_elements: int = 2**27
    """Of a value that the graph computes from constants alone; all of them together may have four times as many."""
    constant_chain: int = 10_000
    """Values that one constant operand is computed from."""
    time_steps: int = 10_000
    """Of a recurrent layer, which is unrolled."""
    subgraphs: int = 100
    """If nodes, each of which takes a look at the whole graph to be settled."""


LIMITS = Limits()
