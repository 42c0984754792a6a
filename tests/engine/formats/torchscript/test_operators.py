# ruff: noqa: E501 - a table, of which each line is one case
"""Every family of operators: values and second derivatives, against torch's own without function transforms."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.forms import thinned
from torch import Tensor, nn
from torch.func import grad, jvp, vmap
from torch.nn import functional as F
from torch.nn.functional import cross_entropy

from wsb_engine import load_model
from wsb_engine.curvature.tracing.smoothness import nonsmooth_operators
from wsb_engine.formats.torchscript.operators import TABLE

Case = Callable[[Tensor, Tensor, Tensor], Tensor]
FIXED = torch.randn(4, 4, generator=torch.Generator().manual_seed(3)).double()
KERNEL = torch.randn(3, 2, 2, 2, generator=torch.Generator().manual_seed(4)).double()
INDEX = torch.tensor([2, 0, 3])

# Each takes h of shape (N, 2, 4, 4) and the buffers a and k, and gives something with the samples first.
SMOOTH: dict[str, Case] = {
    "acos asin atan": lambda h, a, k: torch.acos(h / 3) + torch.asin(h / 3) * torch.atan(h),
    "acosh asinh atanh": lambda h, a, k: torch.acosh(h + 3) + torch.asinh(h) * torch.atanh(h / 3),
    "adaptive average pool": lambda h, a, k: F.adaptive_avg_pool2d(h, (3, 2)),
    "add sub rsub alpha": lambda h, a, k: torch.add(h, h * h, alpha=2) - torch.sub(1.5, h) * torch.rsub(h, 2.0),
    "addcmul addcdiv": lambda h, a, k: torch.addcmul(h, h, h, value=0.5) + torch.addcdiv(h, h, h + 3),
    "addmm mm mv t": lambda h, a, k: torch.addmm(h[:, 0, 0], h[:, 0, 1], (a @ a).t(), beta=0.5, alpha=2.0),
    "atan2 logaddexp xlogy": lambda h, a, k: torch.atan2(h, h + 3) + torch.logaddexp(h, h * h) + torch.xlogy(h, h + 3),
    "average pool": lambda h, a, k: F.avg_pool2d(h, 2, stride=1, padding=1, count_include_pad=False),
    "baddbmm bmm": lambda h, a, k: torch.baddbmm(h[:, 0], h[:, 0], h[:, 1]) + torch.bmm(h[:, 0], h[:, 1]),
    "cat stack hstack": lambda h, a, k: torch.cat([h, torch.stack([h[:, 0], h[:, 1]], 1), torch.hstack([h, h])], dim=1),
    "celu": lambda h, a, k: F.celu(h, 1.0),
    "channel shuffle, repeat_interleave": lambda h, a, k: F.channel_shuffle(h, 2) * h.repeat_interleave(2, 3)[..., 2:6],
    "chunk split, unsafe": lambda h, a, k: torch.unsafe_chunk(h, 2, 2)[1] * torch.unsafe_split(h, 2, 2)[0] + torch.unsafe_split_with_sizes(h, [1, 2, 1], 2)[1],
    "chunk split unbind": lambda h, a, k: h.chunk(2, 2)[1] * h.split([1, 1, 2], 3)[2].sum(3, keepdim=True)[:, :, :2] + h.unbind(1)[0][:, None, 2:],
    "conv1d": lambda h, a, k: F.conv1d(h[:, 0], a[:, :, None] * h.new_ones(2), padding=1),
    "conv2d": lambda h, a, k: F.conv2d(h, k, torch.ones(3).double(), stride=2, padding=1, dilation=1),
    "conv2d, padding by name": lambda h, a, k: F.conv2d(h, k, padding="same"),
    "conv transpose": lambda h, a, k: F.conv_transpose2d(h, k.transpose(0, 1), stride=2, output_padding=1),
    "cos cosh sin sinh tan tanh": lambda h, a, k: torch.cos(h) * torch.cosh(h) + torch.sinh(h) * torch.tan(h / 2) + h.tanh(),
    "cumsum cumprod": lambda h, a, k: torch.cumsum(h, 2) + torch.cumprod(h + 2, 3),
    "convolutions over one and three axes": lambda h, a, k: (
        F.conv3d(h[:, None], k[None, :1], padding=(0, 1, 1)).flatten(2)[..., None]
        * F.conv_transpose1d(h[:, 0], a[:, :2, None]).flatten(1)[:, None, None, :8]
    ),
    "diff": lambda h, a, k: torch.diff(h, prepend=h[..., :1] * 2, dim=-1) * torch.diff(h, n=2, dim=2)[:, :, :1],
    "empty, then written": lambda h, a, k: (
        torch.empty(4).fill_(0.5).double() * h + torch.empty_like(h).copy_(h * h) + h.new_empty(4).zero_()
    ),
    "nan_to_num": lambda h, a, k: torch.nan_to_num(h) * h,
    "bilinear": lambda h, a, k: F.bilinear(h[:, 0], h[:, 1].exp(), torch.stack([a, a.t()]), a[0, :2]),
    "cosine similarity": lambda h, a, k: F.cosine_similarity(h, h.exp() + a, 3),
    "detached input": lambda h, a, k: h * a.detach(),
    "diagonal tril triu": lambda h, a, k: torch.diagonal(h, dim1=2, dim2=3)[..., None] + torch.tril(h) * torch.triu(h, 1),
    "div true_divide": lambda h, a, k: h / (h + 3) + torch.true_divide(h, 2) + torch.div(1.0, h + 3),
    "einsum": lambda h, a, k: torch.einsum("nchw,nchv->nwv", h, h),
    "elu": lambda h, a, k: F.elu(h),
    "erf erfc": lambda h, a, k: torch.erf(h) * torch.erfc(h),
    "exp exp2 expm1 log log1p log2 log10": lambda h, a, k: (
        torch.exp(h) + torch.exp2(h) * torch.expm1(h) + torch.log(h + 3) + torch.log1p(h + 3) * torch.log2(h + 3)
        + torch.log10(h + 3)
    ),
    "expand repeat tile": lambda h, a, k: h[:, :1].expand(-1, 2, -1, -1) * h.repeat(1, 1, 1, 2)[..., 4:] + h.tile(1, 1, 2, 1)[:, :, 4:],
    "flip roll rot90": lambda h, a, k: h.flip(2) * h.roll(1, 3) + torch.rot90(h, 1, [2, 3]),
    "gather index_select take_along_dim": lambda h, a, k: (
        torch.gather(h, 3, INDEX.expand(h.shape[0], 2, 4, 3)) * torch.index_select(h, 3, INDEX)
    ),
    "gelu": lambda h, a, k: F.gelu(h) * F.gelu(h, approximate="tanh"),
    "glu": lambda h, a, k: F.glu(h, 1),
    "group norm": lambda h, a, k: F.group_norm(h, 2, torch.ones(2).double() * 3, eps=1e-3),
    "index": lambda h, a, k: h[:, :, INDEX, 1:] * h[:, :, :3, ::2].sum(3, keepdim=True),
    "index_put": lambda h, a, k: h.index_put((torch.arange(h.shape[0])[:, None], torch.tensor([0, 1])), h[:, :, 0].exp()[..., None]),
    "instance norm": lambda h, a, k: F.instance_norm(h),
    "layer norm": lambda h, a, k: F.layer_norm(h, [4, 4], a, a) + F.layer_norm(h, [4]),
    "linear": lambda h, a, k: F.linear(h, a, a[0]),
    "log_softmax logsumexp": lambda h, a, k: F.log_softmax(h, 1) + torch.logsumexp(h, 3, keepdim=True),
    "masked_fill where": lambda h, a, k: h.masked_fill(a > 0, 0.5) * torch.where(a > 0.3, h, h * h),
    "matmul": lambda h, a, k: h @ h.transpose(-1, -2),
    "mean sum prod": lambda h, a, k: h.mean((2, 3), keepdim=True) * h.sum(1, keepdim=True) + torch.prod(h + 2, 3, keepdim=True),
    "mish silu softplus": lambda h, a, k: F.mish(h) * F.silu(h) + F.softplus(h, beta=2.0),
    "norm": lambda h, a, k: h.norm(2, 3, keepdim=True) * torch.linalg.vector_norm(h, dim=2, keepdim=True),
    "narrow select slice": lambda h, a, k: h.narrow(2, 1, 2) * h.select(1, 0)[:, None, :2] + h[:, :, :2],
    "matrix products of vectors": lambda h, a, k: (
        h * torch.inner(h, h[0, 1, 0])[..., None]
        + torch.outer(h[0, 0, 0], h[1, 0, 0])
        + torch.addmv(h[0, 0, 0], a, h[0, 0, 1])
        + torch.dot(h[0, 0, 0], h[0, 1, 1])
        + torch.addbmm(a, h[:, 0], h[:, 1])
        + torch.mv(a, h[0, 0, 0])
        + torch.vdot(h[0, 1, 2], h[1, 0, 1]) * h.mT
    ),
    "meshgrid broadcast": lambda h, a, k: (
        torch.meshgrid(h[0, 0, 0], h[0, 1, 0], indexing="ij")[1] * torch.broadcast_to(h[:, :1], h.shape)
        + torch.broadcast_tensors(h, a)[1] * h.expand_as(h)
    ),
    "neg reciprocal rsqrt sqrt square": lambda h, a, k: -h * torch.reciprocal(h + 3) + torch.rsqrt(h + 3) * torch.sqrt(h + 3) + h.square(),
    "one_hot": lambda h, a, k: h * F.one_hot(INDEX, 4).double().sum(0),
    "pad": lambda h, a, k: F.pad(h, [1, 1], value=2.0) * F.pad(h, [1, 1, 0, 0], mode="reflect"),
    "pad, others": lambda h, a, k: F.pad(h, [1, 1, 1, 1], mode="replicate") * F.pad(h, [1, 1, 1, 1], mode="circular"),
    "pad and pool over one and three axes": lambda h, a, k: (
        F.avg_pool1d(F.pad(h[:, 0], [2, 2], mode="reflect"), 3)[:, None, :2]
        * F.adaptive_avg_pool3d(F.pad(h[:, None], [1, 1, 1, 1, 1, 1], mode="replicate"), (1, 1, 2))[:, 0]
        + F.avg_pool3d(h[:, None], (2, 2, 2))[:, 0] + F.adaptive_avg_pool1d(h[:, 0], 2)[:, None, :2]
    ),
    "permute movedim swapaxes": lambda h, a, k: h.permute(0, 2, 3, 1) * h.movedim(1, 3) + h.swapaxes(1, 3).swapaxes(1, 2),
    "pixel shuffle": lambda h, a, k: F.pixel_shuffle(F.pixel_unshuffle(h, 2).exp(), 2) * h,
    "pow": lambda h, a, k: (h + 3) ** 2.5 + 2.0**h + (h + 3) ** h,
    "rms norm": lambda h, a, k: F.rms_norm(h, [4], a[0], 1e-5),
    "scatter": lambda h, a, k: torch.scatter(h, 3, INDEX.expand(h.shape[0], 2, 4, 3), h[..., :3].exp()),
    "scatter into slices": lambda h, a, k: (
        torch.slice_scatter(h, h[..., :2].exp(), 3, 1, 3) * torch.select_scatter(h, h[..., 0] ** 2, 3, 2)
    ),
    "scatter_add index_add": lambda h, a, k: (
        torch.index_add(h, 3, INDEX, h[..., :3] * h[..., :3])
        * torch.scatter_add(h, 3, INDEX.expand(h.shape[0], 2, 4, 3), h[..., :3].exp())
    ),
    "attention": lambda h, a, k: F.scaled_dot_product_attention(h, h.sin(), h.exp(), is_causal=True),
    "attention, mask": lambda h, a, k: F.scaled_dot_product_attention(h, h, h, attn_mask=a, scale=0.3)
    + F.scaled_dot_product_attention(h, h, h, attn_mask=a > -0.5),
    "sigmoid logsigmoid": lambda h, a, k: torch.sigmoid(h) * F.logsigmoid(h),
    "softmax": lambda h, a, k: torch.softmax(h, 2),
    "squeeze unsqueeze flatten": lambda h, a, k: h.unsqueeze(1).squeeze(1).flatten(2).unflatten(2, [4, 4]) * h,
    "std var": lambda h, a, k: (
        torch.std(h, 3, keepdim=True) * torch.var(h, (2, 3), unbiased=False, keepdim=True)
        + torch.std_mean(h, 3, keepdim=True)[0] * torch.var_mean(h, 2, keepdim=True)[1]
    ),
    "cells": lambda h, a, k: torch.gru_cell(h[:, 0, 0], h[:, 0, 1], torch.cat([a, a.t(), a * 2]), torch.cat([a.t(), a, a]))
    * torch.lstm_cell(h[:, 1, 0], [h[:, 0, 2], h[:, 0, 3]], torch.cat([a, a, a.t(), a]), torch.cat([a, a.t(), a, a]))[1],
    "columns of patches": lambda h, a, k: F.fold(F.unfold(h, (3, 2), (1, 2), (1, 0), (2, 1)) ** 2, (4, 4), (3, 2), (1, 2), (1, 0), (2, 1)),
    "unfold": lambda h, a, k: h.unfold(2, 2, 1) * h.unfold(2, 2, 2)[:, :, :1],
    "upsample": lambda h, a, k: F.interpolate(h, scale_factor=2.0) * F.interpolate(h, size=[8, 8], mode="bilinear"),
    "upsample bicubic": lambda h, a, k: F.interpolate(h, size=[6, 5], mode="bicubic", align_corners=True),
    "factories": lambda h, a, k: h * torch.zeros(h.shape[3]).add(2.0) + torch.arange(4) * torch.ones_like(h) + torch.eye(4),
    "factories, filled": lambda h, a, k: h * torch.full([4], 0.5).double() + torch.linspace(0, 1, 4).double() + torch.full_like(h, 2.0),
    "casts": lambda h, a, k: h.to(torch.float64) + h.type_as(a) * (a > 0).to(h.dtype),
}  # fmt: skip
KINKED: dict[str, Case] = {
    "abs sign": lambda h, a, k: h.abs() * torch.sign(h),
    "amax amin": lambda h, a, k: h.amax(3, keepdim=True) * h.amin((1, 2), keepdim=True),
    "clamp": lambda h, a, k: h.clamp(-0.5, 0.5) + h.clamp(min=0.1) * torch.clamp_max(h, 0.2),
    "hard activations": lambda h, a, k: F.hardtanh(h) + F.hardswish(h) + F.relu6(h),
    "leaky_relu prelu rrelu": lambda h, a, k: (
        F.leaky_relu(h, 0.2) * F.prelu(h, a[0, :2]) + F.rrelu(h, 0.1, 0.3, training=False)
    ),
    "max min": lambda h, a, k: torch.max(h, 2)[0] * torch.min(h, 2).values + torch.maximum(h, h * h)[:, :, 0],
    "max pool over one and three axes": lambda h, a, k: (
        F.max_pool1d(h[:, 0], 2)[:, None] * F.max_pool3d(h[:, None], (2, 1, 2)) + F.adaptive_max_pool1d(h[:, 0], 2)
    ),
    "adaptive max pool": lambda h, a, k: F.adaptive_max_pool2d(h, (2, 2)),
    "median cummax": lambda h, a, k: torch.median(h, 3)[0][..., None] * torch.cummax(h, 2)[0],
    "remainders": lambda h, a, k: (
        torch.remainder(h, 0.7) * torch.fmod(h, 0.6)
        + torch.frac(h) * torch.minimum(h, a)
        + h * torch.trunc(3 * h)
        + h * torch.div(h, 0.3, rounding_mode="floor")
    ),
    "max pool": lambda h, a, k: F.max_pool2d(h, 2, stride=1, padding=1),
    "norms but of several elements": lambda h, a, k: (
        h.norm(1, 3, keepdim=True) * torch.linalg.vector_norm(h, math.inf, dim=2, keepdim=True)
        + torch.linalg.vector_norm(h[:, :1], dim=1, keepdim=True)
    ),
    "relu": lambda h, a, k: F.relu(h) * torch.relu(h),
    "round floor ceil": lambda h, a, k: h * (torch.round(h) + torch.floor(h) + torch.ceil(h)),
    "selu": lambda h, a, k: F.selu(h),
    "shrink": lambda h, a, k: F.softshrink(h, 0.1) + F.hardshrink(h, 0.1) + F.threshold(h, 0.1, 0.0),
    "softsign, written with abs": lambda h, a, k: F.softsign(h),
    "sort topk": lambda h, a, k: torch.sort(h, 3)[0] * torch.topk(h, 4, 3)[0],
    "comparison": lambda h, a, k: h * (h > 0.1).double(),
}


class Applied(nn.Module):
    """Three logits out of a function of (N, 2, 4, 4), which depends on eight parameters in a curved way."""

    def __init__(self, function: Case) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.w = nn.Parameter(torch.randn(2, 4, 1, generator=generator).double())
        self.register_buffer("fixed", FIXED.clone())
        self.register_buffer("kernel", KERNEL.clone())
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        made = self.function(torch.sin(x * self.w + 0.3), self.fixed, self.kernel)
        flat = made.reshape(made.shape[0], -1)
        return torch.stack([flat.mean(1), (flat * flat).sum(1) / flat.shape[1], flat[:, 0] * flat[:, -1]], 1)


X = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(8)).double()
Y = torch.tensor([0, 2, 1])


def _hessian(loss: Callable[[Tensor], Tensor], w: Tensor) -> Tensor:
    """Forward over reverse, all columns at once, as an analysis multiplies."""

    def product(v: Tensor) -> Tensor:
        return jvp(grad(loss), (w,), (v.view_as(w),))[1].reshape(-1)  # type: ignore[no-any-return]

    return vmap(product)(torch.eye(w.numel(), dtype=w.dtype))  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", thinned([*SMOOTH, *KINKED], 25))
def test_values_and_second_derivatives_are_those_of_torch(name: str, traced: Any) -> None:
    module = Applied((SMOOTH | KINKED)[name]).eval()
    model = load_model(traced(module, X[:2])).resolve()
    torch.testing.assert_close(model.function({"w": module.w.detach()}, {"x": X}), module(X), rtol=1e-8, atol=1e-8)

    def ours(w: Tensor) -> Tensor:
        return cross_entropy(model.function({"w": w}, {"x": X}), Y)

    def eager(w: Tensor) -> Tensor:
        return cross_entropy(torch.func.functional_call(module, {"w": w}, (X,)), Y)

    w = module.w.detach()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        expected = torch.autograd.functional.hessian(eager, w).reshape(w.numel(), -1)  # type: ignore[no-untyped-call]
    assert math.isfinite(float(expected.sum()))
    torch.testing.assert_close(_hessian(ours, w), expected, rtol=1e-8, atol=1e-8)
    assert bool(nonsmooth_operators(model.function, {"w": w}, {"x": X})) == (name in KINKED)


def test_a_hard_sigmoid_has_the_values_of_torch(traced: Any) -> None:
    module = Applied(lambda h, a, k: F.hardsigmoid(4 * h)).eval()  # torch has no second derivative of its own here
    model = load_model(traced(module, X[:2])).resolve()
    torch.testing.assert_close(model.function({"w": module.w.detach()}, {"x": X}), module(X), rtol=1e-9, atol=1e-9)
    assert nonsmooth_operators(model.function, {"w": module.w.detach()}, {"x": X}) == ("hardsigmoid",)


def test_single_precision_stays_single(traced: Any) -> None:
    model = load_model(traced(Applied(SMOOTH["factories, filled"]), X[:2])).resolve()
    z = model.function({"w": model.parameters["w"].float()}, {"x": X.float()})
    assert z.dtype == torch.float32


def test_the_table_has_no_operator_that_draws_random_numbers() -> None:
    drawing = {"bernoulli", "multinomial", "normal", "rand", "rand_like", "randint", "randn", "randn_like", "randperm"}
    assert not drawing & set(TABLE)
