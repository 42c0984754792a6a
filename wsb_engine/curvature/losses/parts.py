"""A loss in two parts: what makes the Gauss-Newton matrix G, and what makes the rest of H (mathematics.md, section 15).

At the logits z₀ that a model gives, ℓ has the same gradient g and curvature S as ⟨g, z⟩ + ½ (z − z₀)ᵀS(z − z₀). H is
linear in g and S: the second term makes G = Σ w JᵀSJ, the first H − G = Σ w Σ_c g_c ∇²z_c.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from wsb_engine.curvature.losses.base import Loss, LossDerivatives, LossRounding
from wsb_engine.options import LossKind

LARGEST = 1 << 22
"""Entries of the S of a chunk's samples that are held."""


@dataclass(frozen=True)
class _Part(Loss):
    """A part of a loss, which has its targets and nothing else of it."""

    whole: Loss

    @property
    def kind(self) -> LossKind:  # type: ignore[override]
        return self.whole.kind

    @property
    def convex(self) -> bool:  # type: ignore[override]
        return self.whole.convex

    @property
    def sums(self) -> int:
        return self.whole.sums

    def correct(self, z: Tensor, y: Tensor) -> None:
        return None

    def classes(self, logits: int) -> int | None:
        return self.whole.classes(logits)

    def targets(self, y: Tensor, logits: int) -> Tensor:
        return self.whole.targets(y, logits)


class NetworkPart(_Part):
    """⟨g, z⟩ with g held fixed, whose Hessian in the parameters is H − G."""

    def values(self, z: Tensor, y: Tensor) -> Tensor:
        return (self.whole.derivatives(z.detach(), y).gradient.detach() * z.double()).sum(dim=1)

    def derivatives(self, z: Tensor, y: Tensor) -> LossDerivatives:
        at = self.whole.derivatives(z, y)
        return _Straight(at.gradient, at)


class LossPart(_Part):
    """½ (z − z₀)ᵀS(z − z₀) with S held fixed, whose Hessian in the parameters is G.

    Where S would take too much memory it is ℓ − ⟨g, z⟩, whose gradient is 0 only up to rounding.
    """

    def values(self, z: Tensor, y: Tensor) -> Tensor:
        if z.numel() * z.shape[-1] > LARGEST:
            return self.whole.values(z, y) - NetworkPart(self.whole).values(z, y)
        fixed = z.detach()
        S, d = self.whole.derivatives(fixed, y).curvature().detach(), (z - fixed).double()
        return 0.5 * (d * (S @ d.unsqueeze(-1)).squeeze(-1)).sum(dim=-1)

    def derivatives(self, z: Tensor, y: Tensor) -> LossDerivatives:
        at = self.whole.derivatives(z, y)
        return _Curved(torch.zeros_like(at.gradient), at)


@dataclass(frozen=True)
class _Straight(LossDerivatives):
    """A gradient without curvature."""

    gradient: Tensor
    whole: LossDerivatives

    @property
    def diagonal(self) -> Tensor:
        return torch.zeros_like(self.gradient)

    def curvature(self) -> Tensor:
        return torch.diag_embed(self.diagonal)

    def factor(self) -> Tensor:
        return self.curvature()

    def factor_times(self, W: Tensor) -> Tensor:
        return torch.zeros_like(self.gradient).unsqueeze(2) * W

    def column_product(self, scale: float) -> Callable[[Tensor], Tensor]:
        return lambda r: r.zero_()

    def rounding(self, z: Tensor, y: Tensor, radius: Tensor) -> LossRounding | None:
        found = self.whole.rounding(z, y, radius)
        nothing = torch.zeros_like(self.gradient[:, 0])
        if found is None:
            return None
        return replace(found, curvature=nothing, total=nothing, norm=lambda X, Y: nothing)


@dataclass(frozen=True)
class _Curved(LossDerivatives):
    """Curvature without a gradient."""

    gradient: Tensor
    whole: LossDerivatives

    @property
    def diagonal(self) -> Tensor:
        return self.whole.diagonal

    def curvature(self) -> Tensor:
        return self.whole.curvature()

    def factor(self) -> Tensor:
        return self.whole.factor()

    def factor_times(self, W: Tensor) -> Tensor:
        return self.whole.factor_times(W)

    def column_product(self, scale: float) -> Callable[[Tensor], Tensor]:
        return self.whole.column_product(scale)

    def rounding(self, z: Tensor, y: Tensor, radius: Tensor) -> LossRounding | None:
        found = self.whole.rounding(z, y, radius)
        return None if found is None else replace(found, gradient=torch.zeros_like(self.gradient))
