"""Resize and Upsample: along each axis a fixed matrix, so that the result is linear in the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from wsb_engine.formats.graph.operators.registry import Call, Static, operator
from wsb_engine.formats.graph.operators.shapes import axis_of
from wsb_engine.formats.graph.tensors import element_count

_Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


@dataclass(frozen=True)
class _Axis:
    """One axis to resample: ``size`` elements become ``target``."""

    size: int
    target: int
    scale: float
    roi: tuple[float, float]


@operator("Resize", static=(1, 2, 3), since=11)
def resize(
    call: Call, x: Tensor, roi: Static | None = None, scales: Static | None = None, sizes: Static | None = None
) -> Tensor:
    axes = [axis_of(call, axis, x.ndim) for axis in call.ints("axes") or range(x.ndim)]
    scales = None if scales is None or scales.size == 0 else scales
    given = scales if sizes is None else sizes
    if given is None or given.size != len(axes):
        raise call.wrong("needs scales or sizes, one for each axis")
    crop = np.tile([[0.0], [1.0]], len(axes)) if roi is None or roi.size == 0 else roi.reshape(2, -1)
    plans = {}
    for position, axis in enumerate(axes):
        size = x.shape[axis]
        scale = float(given[position]) if sizes is None else _scale_of_size(call, x, axes, sizes, position)
        target = _target(call, size, scale, None if sizes is None else int(sizes[position]))
        plans[axis] = _Axis(size, target, scale, (float(crop[0, position]), float(crop[1, position])))
    return _resample(call, x, plans)


@operator("Resize", static=(1,), since=10)
@operator("Upsample", static=(1,), since=7)
def upsample(call: Call, x: Tensor, scales: Static | None = None) -> Tensor:
    """Older forms: scales only, coordinates divided by the scale."""
    factors = call.get("scales", ()) if scales is None else tuple(float(scale) for scale in scales)
    if len(factors) != x.ndim:
        raise call.wrong(f"has {len(factors)} scales for {x.ndim} axes")
    plans = {
        axis: _Axis(x.shape[axis], int(x.shape[axis] * scale), scale, (0.0, 1.0)) for axis, scale in enumerate(factors)
    }
    return _resample(call, x, plans, coordinates="asymmetric", rounding="floor")


def _scale_of_size(call: Call, x: Tensor, axes: Sequence[int], sizes: Static, position: int) -> float:
    scales = [float(size) / x.shape[axis] for size, axis in zip(sizes, axes, strict=True)]
    policy = call.get("keep_aspect_ratio_policy", "stretch")
    return {"stretch": scales[position], "not_larger": min(scales), "not_smaller": max(scales)}[policy]


def _target(call: Call, size: int, scale: float, wanted: int | None) -> int:
    if wanted is not None and call.get("keep_aspect_ratio_policy", "stretch") == "stretch":
        return wanted
    return int(size * scale) if wanted is None else int(size * scale + 0.5)


def _resample(
    call: Call,
    x: Tensor,
    plans: dict[int, _Axis],
    coordinates: str | None = None,
    rounding: str | None = None,
) -> Tensor:
    coordinates = coordinates or call.get("coordinate_transformation_mode", "half_pixel")
    rounding = rounding or call.get("nearest_mode", "round_prefer_floor")
    sizes = [plans[axis].target if axis in plans else size for axis, size in enumerate(x.shape)]
    element_count(tuple(sizes), call.node.label)
    made = x if x.is_floating_point() else x.to(torch.float64)
    outside = torch.zeros([1] * x.ndim, dtype=torch.bool, device=x.device)
    for axis, plan in plans.items():
        if plan.size == plan.target and plan.scale == 1.0 and plan.roi == (0.0, 1.0):
            continue
        where = _source_coordinates(call, plan, coordinates)
        if call.get("mode", "nearest") == "nearest":
            index = torch.as_tensor(np.clip(_rounded(call, where, rounding), 0, plan.size - 1), device=x.device)
            made = torch.index_select(made, axis, index)
        else:
            element_count((plan.target, plan.size), call.node.label)
            matrix = torch.as_tensor(_matrix(call, plan, where), dtype=made.dtype, device=x.device)
            made = torch.tensordot(made, matrix, dims=([axis], [1])).movedim(-1, axis)
        if coordinates == "tf_crop_and_resize":
            shape = [plan.target if dim == axis else 1 for dim in range(x.ndim)]
            beyond = (where < 0) | (where > plan.size - 1)
            outside = outside | torch.as_tensor(beyond, device=x.device).reshape(shape)
    if coordinates == "tf_crop_and_resize":
        value = torch.full((), call.get("extrapolation_value", 0.0), dtype=made.dtype, device=x.device)
        made = torch.where(outside, value, made)
    return made if made.dtype == x.dtype else made.to(x.dtype)


def _source_coordinates(call: Call, plan: _Axis, mode: str) -> _Floats:
    """Where each output element lies in the input, in elements."""
    y = np.arange(plan.target, dtype=np.float64)
    length = plan.scale * plan.size
    last = plan.size - 1
    if mode == "align_corners":
        return y * last / (length - 1) if length != 1 else np.zeros_like(y)
    if mode == "asymmetric":
        return y / plan.scale
    if mode == "tf_crop_and_resize":
        start, end = plan.roi
        if length == 1:
            return np.full_like(y, (start + end) * last / 2)
        return start * last + y * (end - start) * last / (length - 1)
    if mode == "pytorch_half_pixel" and length <= 1:
        return np.full_like(y, -0.5)
    if mode in ("half_pixel", "pytorch_half_pixel"):
        return (y + 0.5) / plan.scale - 0.5
    if mode == "half_pixel_symmetric":
        return plan.size / 2 * (1 - plan.target / length) + (y + 0.5) / plan.scale - 0.5
    if mode == "tf_half_pixel_for_nn":
        return (y + 0.5) / plan.scale
    raise call.unsupported(f"coordinate_transformation_mode {mode!r}")


def _rounded(call: Call, where: _Floats, mode: str) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    rules = {
        "round_prefer_floor": lambda: np.ceil(where - 0.5),
        "round_prefer_ceil": lambda: np.floor(where + 0.5),
        "floor": lambda: np.floor(where),
        "ceil": lambda: np.ceil(where),
    }
    if mode not in rules:
        raise call.unsupported(f"nearest_mode {mode!r}")
    return rules[mode]().astype(np.int64)


def _matrix(call: Call, plan: _Axis, where: _Floats) -> _Floats:
    """Interpolation weights, (target, size)."""
    cubic = call.get("mode", "nearest") == "cubic"
    shrink = min(plan.scale, 1.0) if call.get("antialias", 0) else 1.0
    reach = (2.0 if cubic else 1.0) / shrink
    steps = np.arange(-int(np.ceil(reach)), int(np.ceil(reach)) + 2)
    index = np.floor(where).astype(np.int64)[:, None] + steps
    distance = np.abs(index - where[:, None]) * shrink
    weights = _cubic(distance, call.get("cubic_coeff_a", -0.75)) if cubic else np.clip(1 - distance, 0, None)
    if call.get("exclude_outside", 0):
        weights = np.where((index < 0) | (index >= plan.size), 0.0, weights)
    weights = weights / weights.sum(axis=1, keepdims=True)
    matrix = np.zeros((plan.target, plan.size))
    rows = np.broadcast_to(np.arange(plan.target)[:, None], index.shape)
    np.add.at(matrix, (rows, np.clip(index, 0, plan.size - 1)), weights)  # beyond the edge: the edge's value
    return matrix


def _cubic(distance: _Floats, a: float) -> _Floats:
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((distance - 5) * distance + 8) * distance * a - 4 * a
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))
