"""Shapes of elementwise operators without torch's own way to tell them, which imports its compiler (two seconds)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from wsb_engine.internals import DispatchMode

_ATEN = torch.ops.aten
_ELEMENTWISE = frozenset(
    {
        *(_ATEN.add.Tensor, _ATEN.sub.Tensor, _ATEN.mul.Tensor, _ATEN.mul.Scalar, _ATEN.div.Tensor, _ATEN.neg.default),
        *(_ATEN.tanh.default, _ATEN.sigmoid.default, _ATEN.relu.default, _ATEN.gelu.default, _ATEN.silu.default),
        *(_ATEN.exp.default, _ATEN.log.default, _ATEN.erf.default, _ATEN.sqrt.default, _ATEN.softplus.default),
        *(_ATEN.elu.default, _ATEN.leaky_relu.default),
    }
)
"""Operators whose result has the dtype of their floating tensors and the shape to which they broadcast."""


class Shadows(DispatchMode):
    """Answers elementwise operators of meta tensors at once; torch answers all others."""

    def __torch_dispatch__(
        self, operator: Any, types: Any, arguments: Sequence[Any] = (), named: Mapping[str, Any] | None = None
    ) -> Any:
        tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
        if operator in _ELEMENTWISE and _alike(tensors):
            shape = torch.broadcast_shapes(*(tensor.shape for tensor in tensors))
            whole = next((tensor for tensor in tensors if tensor.shape == shape), None)
            return torch.empty_like(whole) if whole is not None else tensors[0].new_empty(shape)
        return operator(*arguments, **(named or {}))


def _alike(tensors: Sequence[Tensor]) -> bool:
    """Whether all are meta tensors of one floating dtype; a number in a tensor of no dimensions does not promote."""
    return all(tensor.is_meta and tensor.is_floating_point() for tensor in tensors) and (
        len({tensor.dtype for tensor in tensors}) == 1
    )
