"""Along which axis a stored matrix or kernel counts its filters: that of the outputs of the operator that uses it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from wsb_engine.curvature.tracing.dispatch import OperatorWatch
from wsb_engine.internals import memory_of
from wsb_engine.model import Tensors

_FACTORS = {"mm": (0, 1), "bmm": (0, 1), "addmm": (1, 2), "baddbmm": (1, 2)}
"""Places of the left and the right factor among the arguments of matrix products."""
_CONVOLUTION, _TRANSPOSED = "convolution", 6
"""Convolutions of any kind, and the place of the argument that says whether they are transposed."""


def filter_axes(function: Callable[[Tensors, Tensors], Tensor], parameters: Tensors, inputs: Tensors) -> dict[str, int]:
    """Return the axis of the outputs of each parameter that is a factor of a matrix product, or a kernel.

    A view is traced to its parameter by the memory that they share, and an axis of it by its stride. The first use
    counts. A parameter that is copied before it is used is not found.

    Args:
        function: (parameters, inputs) → logits.
        parameters: Its tensors.
        inputs: Some samples.
    """
    # Tensors that require gradients, since without them torch runs whole layers as one operator.
    point = {name: tensor.detach().requires_grad_() for name, tensor in parameters.items()}
    watch = _Uses(point)
    with torch.enable_grad(), watch:
        function(point, inputs)
    return watch.axes


class _Uses(OperatorWatch):
    def __init__(self, parameters: Tensors) -> None:
        super().__init__()
        self.axes: dict[str, int] = {}
        self._owners = {memory_of(tensor): (name, tensor) for name, tensor in parameters.items()}

    def ran(self, operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        name = operator.__name__
        if name in _FACTORS:
            left, right = _FACTORS[name]
            self._note(args[left], -2)
            self._note(args[right], -1)
        elif name == _CONVOLUTION:
            self._note(args[1], 1 if args[_TRANSPOSED] else 0)

    def _note(self, used: Tensor, axis: int) -> None:
        """Note that the outputs lie along an axis of a view."""
        name, tensor = self._owners.get(memory_of(used), (None, None))
        if name is None or tensor is None or name in self.axes:
            return
        step = used.stride(axis)
        found = (own for own in range(tensor.ndim) if tensor.shape[own] > 1 and tensor.stride(own) == step)
        own = next(found, None)
        if own is not None and used.shape[axis] > 1:
            self.axes[name] = own
        elif tensor.ndim > 1:
            # A single output: the axis of length 1, along which the tensor is one filter.
            self.axes[name] = next((axis for axis in range(tensor.ndim) if tensor.shape[axis] == 1), 0)
