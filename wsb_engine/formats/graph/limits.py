"""Limits on what a model file may ask for. Each is checked before memory is taken or work is done."""

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
    data_files: int = 10_000
    """Files of external data; old exporters write one for each tensor."""
    nesting: int = 16
    """Subgraphs within subgraphs, and functions that call functions."""
    attributes: int = 256
    """Attributes of one node."""
    name_bytes: int = 4096
    string_bytes: int = 1 << 20
    """Bytes of one string attribute."""
    rank: int = 32
    tensor_elements: int = 2**31
    """Elements of any value that the graph computes."""
    folded_elements: int = 2**27
    """Elements of a value computed from constants alone; all of them together may have four times as many."""
    constant_chain: int = 10_000
    """Values that one constant operand is computed from."""
    factors: int = 64
    """Constant factors of one shape among which sines and cosines are looked for."""
    time_steps: int = 10_000
    """Steps of a recurrent layer, which is unrolled."""
    subgraphs: int = 100
    """If nodes; resolving one takes a pass over the whole graph."""


LIMITS = Limits()
