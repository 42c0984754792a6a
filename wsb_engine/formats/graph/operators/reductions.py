"""Reductions over axes, running sums, and the positions of extreme elements."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from wsb_engine.formats.graph.kernels.norms import vector_norm
from wsb_engine.formats.graph.operators.registry import Call, Kernel, Static, operator
from wsb_engine.formats.graph.operators.shapes import axis_of
from wsb_engine.formats.graph.plan import without_call

_Reduction = Callable[[Tensor, list[int], bool], Tensor]


def _sum(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    return x.sum(dim=dims, keepdim=keep, dtype=x.dtype)


def _mean(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    if x.is_floating_point():
        return x.mean(dim=dims, keepdim=keep)
    return x.to(torch.float64).mean(dim=dims, keepdim=keep).to(x.dtype)


def _product(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    for axis in sorted(dims, reverse=True):
        x = x.prod(dim=axis, keepdim=keep, dtype=x.dtype)
    return x


def _extreme(function: Callable[..., Tensor], infinity: float, end: str) -> _Reduction:
    """Return a reduction to an extreme element; of no elements, to that end of the range of numbers."""

    def reduce(x: Tensor, dims: list[int], keep: bool) -> Tensor:
        if any(x.shape[axis] == 0 for axis in dims):
            none = infinity if x.is_floating_point() else getattr(torch.iinfo(x.dtype), end)
            return torch.full_like(x.sum(dim=dims, keepdim=keep, dtype=x.dtype), none)
        return function(x, dim=dims, keepdim=keep)

    return reduce


def _l1(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    return vector_norm(x, 1, dims, keepdim=keep) if x.is_floating_point() else _sum(x.abs(), dims, keep)


def _sum_of_squares(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    return _sum(x * x, dims, keep)


def _l2(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    if any(x.shape[axis] == 0 for axis in dims) or not x.is_floating_point():
        return _sum_of_squares(x, dims, keep).sqrt().to(x.dtype)
    return vector_norm(x, 2, dims, keepdim=keep)


def _log_sum(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    return _sum(x, dims, keep).log().to(x.dtype)


def _log_sum_exp(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    return torch.logsumexp(x if x.is_floating_point() else x.to(torch.float64), dim=dims, keepdim=keep).to(x.dtype)


_REDUCTIONS: dict[str, _Reduction] = {
    "ReduceL1": _l1,
    "ReduceL2": _l2,
    "ReduceLogSum": _log_sum,
    "ReduceLogSumExp": _log_sum_exp,
    "ReduceMax": _extreme(torch.amax, -math.inf, "min"),
    "ReduceMean": _mean,
    "ReduceMin": _extreme(torch.amin, math.inf, "max"),
    "ReduceProd": _product,
    "ReduceSum": _sum,
    "ReduceSumSquare": _sum_of_squares,
}


def _reducer(function: _Reduction) -> Kernel:
    def kernel(call: Call, x: Tensor, axes: Static | None = None) -> Tensor:
        """Axes are an attribute in older opsets, an input in newer ones; none means all, or nothing to do."""
        chosen = call.ints("axes") if axes is None else tuple(axes.tolist())
        if not chosen:
            if call.get("noop_with_empty_axes", 0):
                return function(x.unsqueeze(-1), [x.ndim], False)  # what it does to each element by itself
            chosen = tuple(range(x.ndim))
        if x.dtype == torch.bool:
            return function(x.to(torch.uint8), _dims(call, chosen, x), bool(call.get("keepdims", 1))).to(torch.bool)
        return function(x, _dims(call, chosen, x), bool(call.get("keepdims", 1)))

    return kernel


def _dims(call: Call, axes: tuple[int, ...], x: Tensor) -> list[int]:
    return sorted({axis_of(call, axis, x.ndim) for axis in axes})


for _name, _function in _REDUCTIONS.items():
    operator(_name, static=(1,))(_reducer(_function))


@operator("CumProd", "CumSum", static=(1,))
def running(call: Call, x: Tensor, axis: Static) -> Tensor:
    function, start = (torch.cumprod, 1) if call.node.operator == "CumProd" else (torch.cumsum, 0)
    dim = axis_of(call, int(axis.reshape(-1)[0]), x.ndim)
    backwards = bool(call.get("reverse", 0))
    x = x.flip(dim) if backwards else x
    if call.get("exclusive", 0):
        first = torch.full_like(x.narrow(dim, 0, 1), start)
        x = torch.cat([first, x.narrow(dim, 0, x.shape[dim] - 1)], dim)
    made = function(x, dim=dim, dtype=x.dtype)
    return made.flip(dim) if backwards else made


@operator("ArgMax", "ArgMin")
def position(call: Call, x: Tensor) -> Tensor:
    function = torch.argmax if call.node.operator == "ArgMax" else torch.argmin
    axis, keep = call.get("axis", 0), bool(call.get("keepdims", 1))
    if not call.get("select_last_index", 0):
        return function(x, dim=axis, keepdim=keep)
    return x.shape[axis] - 1 - function(x.flip(axis), dim=axis, keepdim=keep)


@operator("TopK", static=(1,))
def top_k(call: Call, x: Tensor, k: Static | None = None) -> tuple[Tensor, Tensor]:
    """Return the k extreme elements in order, and their positions; of equal ones the first comes first."""
    axis = axis_of(call, call.get("axis", -1), x.ndim)
    count = call.get("k", 1) if k is None else int(k.reshape(-1)[0])
    values, indices = torch.sort(x, dim=axis, descending=bool(call.get("largest", 1)), stable=True)
    return values.narrow(axis, 0, count), indices.narrow(axis, 0, count)


operator("Det")(without_call(torch.linalg.det))
