"""A checked archive → parameters, attributes and graph, by torch's own loader, nothing executed.

What ``torch.jit.load`` calls is called here directly because it lets the functions be counted before they are inlined:
inlining is exponential in the worst case.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from wsb_engine.errors import first_line
from wsb_engine.formats.graph.limits import LIMITS
from wsb_engine.formats.torchscript import problems
from wsb_engine.formats.torchscript.graph import Block, read_graph
from wsb_engine.internals import (
    CompilationUnit,
    ModuleDict,
    ParameterDict,
    forward_method,
    has_hooks,
    import_ir_module,
    is_frozen,
)

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_MODULES = 100_000
"""Submodules, counted with repetition."""


@dataclass(frozen=True)
class Submodule:
    """A module as a value of the graph, of which attributes are read."""

    path: str
    module: Any


@dataclass(frozen=True)
class Argument:
    """One argument of forward, the module itself left out."""

    name: str
    type: str
    has_default: bool
    default: Any
    shape: tuple[int | None, ...] | None = None
    """Declared sizes, None for one that is free; None if the file declares none, as TorchScript does not."""
    dtype: torch.dtype | None = None


@dataclass
class Script:
    """A loaded module. Nothing of it runs."""

    block: Block
    """The block of forward; its first input is the module."""
    arguments: tuple[Argument, ...]
    root: Submodule
    parameters: dict[str, Tensor]
    """Floating parameters by name; one that has several names has the first."""
    shared: tuple[str, ...]
    """Names of parameters that have several."""
    frozen: bool = False
    """True if freezing turned the module's parameters into constants of the graph."""
    frozen_parts: bool = False
    """True if it did so to a submodule."""
    _names: dict[object, str] = field(default_factory=dict)

    def name_of(self, tensor: Tensor, path: str) -> str:
        """Return the parameter's name if the tensor is one, else its path."""
        return self._names.get(_identity(tensor, path), path)


def load(archive: bytes) -> Script:
    """Load an archive that ``checked_archive`` has passed.

    Raises:
        ModelError: ``model_invalid`` if torch can't read it, ``model_too_complex``, ``unsupported_operator``.
    """
    unit = CompilationUnit()
    try:
        module = import_ir_module(unit, archive)
        forward = forward_method(module)
        if forward is None:
            raise problems.invalid("the module has no method forward")
        if has_hooks(module):
            raise problems.unsupported("forward hook", "", "is not supported")
        _check_expansion(unit, f"{module.qualified_name}.forward")
        block = read_graph(forward.inlined_graph)
        arguments = tuple(
            Argument(each.name, str(each.type), each.has_default_value(), each.default_value)
            for each in forward.schema.arguments[1:]
        )
    except (RuntimeError, ValueError, LookupError, ArithmeticError, TypeError) as error:  # as C++ threw them
        raise problems.invalid(f"torch can't load the module: {first_line(error)}") from error
    modules = list(_modules(module))
    script = assembled(block, arguments, module, _parameters(modules))
    return replace(
        script, frozen=is_frozen(module), frozen_parts=any(is_frozen(each) for path, each in modules if path)
    )


def _check_expansion(unit: Any, name: str) -> None:
    """Count the nodes that inlining all calls would make.

    The archive's check has bounded the depth of calls, so the recursion here is no deeper than that.
    """
    counts: dict[str, int] = {}

    def count(function: str) -> int:
        if function not in counts:
            found = unit.find_function(function)
            counts[function] = 1 if found is None else sum(count_node(node) for node in _all_nodes(found.graph))
        problems.limit("operations, once its calls are inlined,", counts[function], LIMITS.nodes)
        return counts[function]

    def count_node(node: Any) -> int:
        if node.kind() == "prim::CallFunction":
            return count(node.inputsAt(0).type().annotation_str)
        if node.kind() == "prim::CallMethod":
            return count(f"{node.inputsAt(0).type().annotation_str}.{node.s('name')}")
        return 1

    count(name)


def _all_nodes(block: Any) -> Iterator[Any]:
    """Nodes of a block and of the blocks within it, whose nesting the archive's check has bounded."""
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _all_nodes(inner)


def assembled(
    block: Block, arguments: tuple[Argument, ...], module: Any, declared: Iterable[tuple[str, Tensor]]
) -> Script:
    """Return the script of a graph, with each parameter once.

    Args:
        block: The graph of forward.
        arguments: Those of forward, the module left out.
        module: What the graph reads attributes of, by ``getattr``.
        declared: Parameters by their dotted names, in order; one that is shared under each of its names.

    Raises:
        ModelError: ``unsupported_dtype``.
    """
    parameters: dict[str, Tensor] = {}
    names: dict[object, str] = {}
    shared: dict[str, None] = {}
    for path, tensor in declared:
        require_dense(tensor, path)
        if not tensor.is_floating_point():
            continue
        if tensor.dtype not in _FLOATS:
            raise problems.unsupported_tensor(path, f"has dtype {tensor.dtype}")
        first = names.setdefault(_identity(tensor, path), path)
        if first != path:
            shared[first] = None
        else:
            parameters[path] = tensor.detach()
    return Script(block, arguments, Submodule("", module), parameters, tuple(shared), _names=names)


def _modules(module: Any) -> Iterator[tuple[str, Any]]:
    """Submodules with the beginnings of their parameters' dotted names, a module before those in it."""
    pending = [("", module)]
    count = 0
    while pending:
        path, current = pending.pop()
        count += 1
        problems.limit("submodules", count, _MODULES)
        yield path, current
        inner: Any = ModuleDict(current)
        pending += [(f"{path}{name}.", each) for name, each in reversed(inner.items())]


def _parameters(modules: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Tensor]]:
    """Parameters by their dotted names."""
    for path, module in modules:
        own: Any = ParameterDict(module)
        yield from ((path + name, value) for name, value in own.items() if isinstance(value, Tensor))


def require_dense(tensor: Tensor, path: str) -> None:
    """Raise ``unsupported_dtype`` for a tensor that the reader does not compute with."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex():
        raise problems.unsupported_tensor(path)


def _identity(tensor: Tensor, path: str) -> object:
    """Equal for two tensors of the same elements in memory."""
    if tensor.numel() == 0 or tensor.layout != torch.strided:
        return path
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype
