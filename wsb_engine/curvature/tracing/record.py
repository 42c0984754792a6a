"""Record the operators that a function runs, as a graph.

``make_fx`` of torch does the same for compilers: it keeps for each value a stack trace, a fake tensor and a symbol,
which takes a millisecond an operator. What is needed here are the operators, and the form of each value.
"""

from __future__ import annotations

import itertools
import operator
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from wsb_engine.internals import DispatchMode

FORM = "val"
"""Key of a node's ``TensorForm`` among its metadata."""


class NumberReadError(Exception):
    """The function reads a number out of a tensor that follows its arguments: a graph would keep that number."""


class TensorForm(NamedTuple):
    """What two tensors share if one can take the place of the other."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @property
    def is_contiguous(self) -> bool:
        return self._is_dense_in(range(len(self.shape)))

    @property
    def is_channels_last(self) -> bool:
        """True for four dimensions in that format and in no other."""
        return len(self.shape) == 4 and not self.is_contiguous and self._is_dense_in((0, 2, 3, 1))

    def _is_dense_in(self, order: Sequence[int]) -> bool:
        expected = 1
        for axis in reversed(order):
            if self.shape[axis] != 1 and self.stride[axis] != expected:
                return 0 in self.shape
            expected *= self.shape[axis]
        return True


def form_of(tensor: Tensor) -> TensorForm:
    """Return the form of a tensor."""
    return TensorForm(tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device)


class Recording(NamedTuple):
    """The operators of a function."""

    graph: fx.Graph
    constants: torch.nn.Module
    """Holds the tensors that the graph reads besides its arguments."""


def record(
    function: Callable[..., Sequence[Tensor]], arguments: Sequence[Tensor], check: Callable[[], None] = lambda: None
) -> tuple[Recording, Sequence[Tensor]]:
    """Run a function once, and return its operators with its results.

    Args:
        function: Function of tensors with a sequence of tensors as its result.
        arguments: They become the graph's placeholders; any other tensor that the function reads is a constant.
        check: Called after each operator; may raise to stop.

    Raises:
        NumberReadError: if the function reads a number out of a tensor that depends on its arguments.
    """
    recorder = _Recorder(arguments, check)
    with recorder:
        results = function(*arguments)
    return recorder.recording(results), results


class _Recorder(DispatchMode):
    """Adds each operator that runs inside its block to a graph.

    Args:
        arguments: Tensors of the placeholders.
        check: Called after each operator.
    """

    def __init__(self, arguments: Sequence[Tensor], check: Callable[[], None]) -> None:
        super().__init__()
        self._check = check
        self._graph, self._constants, self._count = fx.Graph(), torch.nn.Module(), itertools.count()
        self._nodes: dict[int, tuple[weakref.ref[Tensor], fx.Node]] = {}
        """By the identity of a tensor; the reference tells whether it is still the same one."""
        self._following: set[fx.Node] = set()
        """Nodes that depend on arguments."""
        for index, tensor in enumerate(arguments):
            node = self._graph.placeholder(f"argument_{index}")
            self._following.add(node)
            self._track(tensor, node)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        result = function(*args, **named)
        self._check()
        node = self._graph.create_node("call_function", function, self._given(args), self._given(named))
        follows = not self._following.isdisjoint(node.all_input_nodes)
        if follows:
            self._following.add(node)
        if isinstance(result, Tensor):
            self._track(result, node)
        elif isinstance(result, (tuple, list)):
            self._track_each(result, node, follows)
        elif follows and torch.Tag.data_dependent_output in function.tags:
            raise NumberReadError(str(function))
        return result

    def recording(self, results: Sequence[Tensor]) -> Recording:
        """Return the graph with these results."""
        self._graph.output(self._given(list(results)))
        return Recording(self._graph, self._constants)

    def _track_each(self, results: Sequence[Any], node: fx.Node, follows: bool) -> None:
        for index, each in enumerate(results):
            if isinstance(each, Tensor):
                item = self._graph.create_node("call_function", operator.getitem, (node, index))
                if follows:
                    self._following.add(item)
                self._track(each, item)

    def _track(self, tensor: Tensor, node: fx.Node) -> None:
        node.meta[FORM] = form_of(tensor)
        self._nodes[id(tensor)] = weakref.ref(tensor), node

    def _given(self, value: Any) -> Any:
        """Return arguments of an operator with nodes in place of tensors."""
        if isinstance(value, Tensor):
            return self._node(value)
        if isinstance(value, (tuple, list)):
            return type(value)(map(self._given, value))
        if isinstance(value, dict):
            return {name: self._given(each) for name, each in value.items()}
        return value

    def _node(self, tensor: Tensor) -> fx.Node:
        reference, node = self._nodes.get(id(tensor), (None, None))
        if reference is not None and node is not None and reference() is tensor:
            return node
        name = f"constant_{next(self._count)}"
        self._constants.register_buffer(name, tensor)
        constant = self._graph.create_node("get_attr", name)
        self._track(tensor, constant)
        return constant
