"""The reader's own view of a TorchScript graph: plain operations with names, constants as Python values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from wsb_engine.formats.graph.limits import LIMITS
from wsb_engine.formats.torchscript import problems

NESTING = 200
"""Blocks within blocks, once all calls are inlined."""


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One node of a graph."""

    kind: str
    """With its namespace: ``aten::add``."""
    overload: str
    """``Tensor`` of ``aten::add.Tensor``; empty for the only one."""
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    blocks: tuple[Block, ...]
    constant: Any
    """Value of a ``prim::Constant``."""
    attribute: str
    """Name that a ``prim::GetAttr`` reads."""
    location: str
    """File and line within the archive, as far as it is known."""

    @property
    def label(self) -> str:
        """How messages name this operation."""
        return problems.label(self.kind, self.location)

    @property
    def details(self) -> dict[str, Any]:
        """What an error says about this operation to programs."""
        return {"operator": self.kind, "location": self.location}

    @property
    def name(self) -> str:
        """Without the namespace."""
        return self.kind.partition("::")[2]

    @property
    def public_name(self) -> str | None:
        """The name of a function of torch's that this is, in place or not; None for what only torch itself calls."""
        name = self.name.removesuffix("_")
        return None if name.startswith("_") else name


@dataclass(frozen=True, kw_only=True)
class Block:
    """Operations in order; each uses what comes before it, here or in an enclosing block."""

    inputs: tuple[str, ...]
    operations: tuple[Operation, ...]
    outputs: tuple[str, ...]


def read_graph(graph: Any) -> Block:
    """Copy a graph of torch, in which all calls are inlined.

    Raises:
        ModelError: ``model_too_complex``, ``unsupported_operator`` for a constant of an unknown kind.
    """
    return _Reader().block(graph, 0)


class _Reader:
    def __init__(self) -> None:
        self._count = 0

    def block(self, block: Any, depth: int) -> Block:
        problems.limit("levels of nested blocks", depth, NESTING)
        operations = []
        for node in block.nodes():
            self._count += 1
            problems.limit("operations", self._count, LIMITS.nodes)
            operations.append(self._operation(node, depth))
        return Block(inputs=_names(block.inputs()), operations=tuple(operations), outputs=_names(block.outputs()))

    def _operation(self, node: Any, depth: int) -> Operation:
        kind = node.kind()
        location = ""
        if kind not in ("prim::Constant", "prim::GetAttr", "prim::ListConstruct"):
            location = _location(node.sourceRange())
        return Operation(
            kind=kind,
            # aten::add.Tensor(Tensor self, …) -> Tensor
            overload=node.schema().partition("(")[0].partition(".")[2] if kind.startswith("aten::") else "",
            inputs=_names(node.inputs()),
            outputs=_names(node.outputs()),
            blocks=tuple(self.block(each, depth + 1) for each in node.blocks()),
            constant=_constant(node) if kind == "prim::Constant" else None,
            attribute=node.s("name") if kind in ("prim::GetAttr", "prim::SetAttr") else "",
            location=location,
        )


def _names(values: Any) -> tuple[str, ...]:
    return tuple(f"%{value.debugName()}" for value in values)


def _location(source_range: str) -> str:
    """Return the first line of torch's description: ``File "code/__torch__.py", line 8``."""
    return source_range.partition("\n")[0].strip().removeprefix("File ").replace('"', "")[:200]


def _constant(node: Any) -> Any:
    if "value" not in node.attributeNames():
        return None  # None itself, or a function whose calls have been inlined
    try:
        return node.output().toIValue()
    except RuntimeError as error:
        kind = f"prim::Constant of type {node.output().type()}"
        raise problems.unsupported(kind, _location(node.sourceRange())) from error
