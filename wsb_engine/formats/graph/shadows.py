"""Shapes of common operators without torch's own way to tell them, which imports its compiler (two seconds)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
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
    """Answers elementwise operators and products of meta tensors at once; torch answers, and refuses, all others."""

    def __torch_dispatch__(
        self, operator: Any, types: Any, arguments: Sequence[Any] = (), named: Mapping[str, Any] | None = None
    ) -> Any:
        tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
        made = _made(operator, tensors) if _are_alike(tensors) else None
        return operator(*arguments, **(named or {})) if made is None else made


def _are_alike(tensors: Sequence[Tensor]) -> bool:
    """Whether all are meta tensors of one floating dtype."""
    return all(tensor.is_meta and tensor.is_floating_point() for tensor in tensors) and (
        len({tensor.dtype for tensor in tensors}) == 1
    )


def _made(operator: Any, tensors: Sequence[Tensor]) -> Tensor | None:
    """Return the result of an operator; None where that is torch's to say."""
    if operator in _ELEMENTWISE:
        shape = _broadcast(*tensors)
        ordered = all(tensor.is_contiguous() for tensor in tensors)
        return tensors[0].new_empty(shape) if shape is not None and ordered else None
    if operator is _ATEN.mm.default:
        return _product(*tensors)
    if operator is _ATEN.addmm.default:
        product = _product(*tensors[1:])
        return product if product is not None and _broadcast(tensors[0], product) == product.shape else None
    return None


def _broadcast(*tensors: Tensor) -> tuple[int, ...] | None:
    """Return the shape to which tensors broadcast; None if they don't. Torch's own function imports sympy."""
    try:
        return np.broadcast_shapes(*(tensor.shape for tensor in tensors))
    except ValueError:
        return None


def _product(left: Tensor, right: Tensor) -> Tensor | None:
    fit = left.ndim == right.ndim == 2 and left.shape[1] == right.shape[0]
    return left.new_empty((left.shape[0], right.shape[1])) if fit else None
