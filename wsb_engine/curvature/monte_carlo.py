"""Monte Carlo arithmetic: every operator's result moves a little, to measure rounding (mathematics.md, section 11).

Parker 1997, *Monte Carlo arithmetic* (UCLA CSD-970002), perturbs operands and results of every inexact operation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any, Self, TypeGuard

import torch
from torch import Tensor

from wsb_engine.curvature.products.autodiff import largest_entry
from wsb_engine.internals import DispatchMode, memory_of, schema_of, tree_leaves
from wsb_engine.random_vectors import uniform

PATTERN, STRIDE = 65_521, 4_099
"""Numbers of a noise that repeats, and where the next tensor starts in it: primes, so that no shape is in step."""
STEP, LARGEST_SHORT = 2.0**-10, 2.0**26
"""Multiples of the first up to the second: float64 holds their products, and sums of these, without rounding."""
LARGEST_MOVED = 2.0**1000
"""Numbers beyond it stay, lest they leave the range."""

_EXACT = """
    _to_copy _unsafe_index _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d abs
    adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d amax amin aminmax as_strided_scatter block_diag cat ceil
    channel_shuffle clamp clamp_max clamp_min clone constant_pad_nd copy copysign cummax cummin diag_embed
    diagonal_scatter embedding empty_like fill flip floor fmax fmin fmod frac frexp full_like gather hardtanh heaviside
    im2col index index_copy index_fill index_put index_select kthvalue lift_fresh_copy masked_fill masked_scatter
    masked_select max max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices max_unpool2d max_unpool3d
    maximum median min minimum mode nan_to_num nanmedian neg new_empty new_empty_strided new_full new_ones new_zeros
    ones_like pixel_shuffle pixel_unshuffle reflection_pad1d reflection_pad2d reflection_pad3d relu repeat
    repeat_interleave replication_pad1d replication_pad2d replication_pad3d roll rot90 round scatter select_scatter sgn
    sign slice_scatter sort split_with_sizes_copy stack take threshold topk tril triu trunc upsample_nearest1d
    upsample_nearest2d upsample_nearest3d where zero zeros_like
"""
EXACT = frozenset(_EXACT.split())
"""Operators of ATen whose results are numbers that they are given, or that no rounding touches."""
_EXACT_OF_SHORT = """
    add addbmm addcmul addmm addmv baddbmm bmm convolution cumprod cumsum div dot floor_divide index_add mean mm mul mv
    pow prod reciprocal remainder rsub scatter_add sqrt sub sum
"""
EXACT_OF_SHORT = frozenset(_EXACT_OF_SHORT.split())
"""Arithmetic that does not round where it takes few digits to few: positions, masks and bins keep their meaning."""
COMPLEMENTS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "erf": lambda x: torch.erfc(x.abs()),
    "sigmoid": lambda x: torch.sigmoid(-x),
    "tanh": lambda x: 2 * torch.sigmoid(-2 * x.abs()),
}
"""Functions that saturate at 1, and how far from it they are: where that is less than rounding, it is their error."""
UNIT = 2.0**-53
LEAST_SHARE = 2.0**-8
"""Share of ε by which a saturated result moves at least: a few units in the last place, lest it stays."""


class MonteCarloArithmetic(DispatchMode):
    """Multiplies results of operators in float64 by 1 + ε(ξ + ξ′) within its block; an exact zero stays one.

    Each entry has its own ξ. All of a result share ξ′, since samples that are alike round alike: over many of them ξ
    averages out, what they all lose does not. A result that saturates moves by ε/u times its distance from 1 where that
    is less, and by a few units in the last place at least. Where nothing rounds nothing moves, so that what data decide
    by few digits stays decided. What an operator does within itself does not move.

    Args:
        seed: Seed of ξ and ξ′, which are uniform with unit variance.
        size: ε.
        device: Device of the tensors.
    """

    def __init__(self, seed: int, size: float, device: torch.device) -> None:
        super().__init__()
        own, common = (uniform(PATTERN, seed, i, device).mul_(2 * math.sqrt(3) * size) for i in range(2))
        self._noise, self._common = own.repeat(2), common
        self._places = count()

    def __enter__(self) -> Self:
        self._places = count()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = function.overloadpacket.__name__.removesuffix("_")
        given = [] if name in EXACT else [leaf for leaf in tree_leaves((args, kwargs)) if _is_dense(leaf)]
        if not given:
            return function(*args, **kwargs)
        of_short = name in EXACT_OF_SHORT and all(map(_are_short, given))
        saturates = name in COMPLEMENTS and given[0].dtype == torch.float64
        share = (COMPLEMENTS[name](given[0]) / UNIT).clamp_(LEAST_SHARE, 1) if saturates else None
        result = function(*args, **kwargs)
        written = any(part.alias_info is not None and part.alias_info.is_write for part in schema_of(function).returns)
        known = set() if written else set(map(memory_of, given))
        for tensor in tree_leaves(result):
            if not _is_dense(tensor) or tensor.dtype not in (torch.float64, torch.complex128):
                continue
            if memory_of(tensor) not in known and not (of_short and _are_short(tensor)):
                self._move(torch.view_as_real(tensor) if tensor.is_complex() else tensor, share)
        return result

    def _move(self, tensor: Tensor, share: Tensor | None) -> None:
        if not tensor.numel():
            return
        place = next(self._places)
        start = place * STRIDE % PATTERN
        noise = self._noise[start : start + min(PATTERN, tensor.numel())] + self._common[place % PATTERN]
        noise = noise.to(tensor.device)  # numbers may lie on the CPU beside a GPU
        if share is not None or not tensor.is_contiguous() or largest_entry(tensor) > LARGEST_MOVED:
            factors = noise.repeat(-(-tensor.numel() // PATTERN))[: tensor.numel()].view(tensor.shape)
            if share is not None:
                factors *= share
            tensor.mul_(factors.add_(1).masked_fill_(tensor.abs() > LARGEST_MOVED, 1))
            return
        noise += 1
        entries, rows = tensor.view(-1), tensor.numel() // PATTERN
        if rows:
            entries[: rows * PATTERN].view(rows, PATTERN).mul_(noise)
        entries[rows * PATTERN :].mul_(noise[: tensor.numel() % PATTERN])


def _is_dense(leaf: object) -> TypeGuard[Tensor]:
    return isinstance(leaf, Tensor) and leaf.layout == torch.strided and not leaf.is_meta


def _are_short(tensor: Tensor) -> bool:
    """Return True if all entries have few digits, as ``STEP`` and ``LARGEST_SHORT`` say."""
    if not tensor.is_floating_point():
        return not tensor.is_complex()
    if not tensor.numel():
        return True
    first = float(tensor[(0,) * tensor.ndim])  # mostly settles it
    if first % STEP or not abs(first) <= LARGEST_SHORT:
        return False
    return bool(((tensor % STEP == 0) & (tensor.abs() <= LARGEST_SHORT)).all())
