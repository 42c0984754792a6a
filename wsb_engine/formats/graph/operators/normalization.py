"""Normalisations."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from wsb_engine.formats.graph.kernels import normalization as kernels
from wsb_engine.formats.graph.kernels.norms import normalised, vector_norm
from wsb_engine.formats.graph.operators.registry import Call, operator
from wsb_engine.formats.graph.operators.shapes import axis_of


@operator("BatchNormalization")
def batch_normalization(call: Call, x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """As in inference: with the running statistics."""
    if call.get("training_mode", 0):
        raise call.unsupported("training mode")
    if call.get("spatial", 1) != 1:
        raise call.unsupported("spatial = 0")
    return kernels.batch_norm(x, mean, variance, scale, shift, call.get("epsilon", 1e-5))


@operator("InstanceNormalization")
def instance_normalization(call: Call, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return kernels.instance_norm(x, scale, shift, call.get("epsilon", 1e-5))


@operator("LayerNormalization")
def layer_normalization(call: Call, x: Tensor, scale: Tensor, shift: Tensor | None = None) -> object:
    """Over all axes from ``axis`` on; the mean and the factor are optional outputs."""
    axis = axis_of(call, call.get("axis", -1), x.ndim)
    normal, mean, factor = kernels.standardised(x, range(axis, x.ndim), call.get("epsilon", 1e-5))
    return (kernels.affine(normal, scale, shift), mean, factor)


@operator("RMSNormalization")
def rms_normalization(call: Call, x: Tensor, scale: Tensor) -> Tensor:
    axis = axis_of(call, call.get("axis", -1), x.ndim)
    return kernels.rms_norm(x, x.ndim - axis, scale, call.get("epsilon", 1e-5))


@operator("GroupNormalization")
def group_normalization(call: Call, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Scale and shift are one number a group before opset 21, one a channel since."""
    groups = call.get("num_groups", 0)
    if groups < 1 or x.shape[1] % groups:
        raise call.wrong(f"can't divide {x.shape[1]} channels into {groups} groups")
    epsilon = call.get("epsilon", 1e-5)
    if call.version < 21:
        return kernels.affine_by_channel(kernels.grouped(x, groups, epsilon), scale, shift).reshape(x.shape)
    return kernels.group_norm(x, groups, scale, shift, epsilon)


@operator("MeanVarianceNormalization")
def mean_variance_normalization(call: Call, x: Tensor) -> Tensor:
    axes = call.ints("axes") or (0, 2, 3)
    centred = x - x.mean(dim=axes, keepdim=True)
    samples = math.prod(x.shape[axis] for axis in axes)
    return centred / (vector_norm(centred, 2, axes, keepdim=True) / math.sqrt(samples) + 1e-9)


@operator("LpNormalization")
def lp_normalization(call: Call, x: Tensor) -> Tensor:
    """x / ‖x‖_p along one axis; 0 where the norm is 0."""
    return normalised(x, vector_norm(x, call.get("p", 2), [call.get("axis", -1)], keepdim=True))


@operator("LRN")
def local_response_normalization(call: Call, x: Tensor) -> Tensor:
    """Across a window of neighbouring channels."""
    size = call.get("size", 1)
    before, after = math.floor((size - 1) / 2), math.ceil((size - 1) / 2)
    rows = functional.pad(x.square().movedim(1, -1), (before, after))
    ones = torch.ones(1, 1, size, dtype=x.dtype, device=x.device)
    sums = functional.conv1d(rows.reshape(-1, 1, rows.shape[-1]), ones)
    squares = sums.reshape(*rows.shape[:-1], x.shape[1])
    scale = call.get("bias", 1.0) + call.get("alpha", 1e-4) / size * squares.movedim(-1, 1)
    return x / scale.pow(call.get("beta", 0.75))
