"""Focal loss of a softmax of C ≥ 2 logits, in forms that do not cancel (mathematics.md, section 10).

Lin, Goyal, Girshick, He, Dollár 2017, *Focal Loss for Dense Object Detection*: ℓ = −Σ_j y_j (1 − p_j)^γ ln p_j, with
γ ≥ 0 and targets y that hold the weights α of their classes. With u = ln p, c = 1 − p, ρ = −u/c ≥ 1, and for each j

    a = y (c^γ + γ c^γ p ρ),     b = y γ c^{γ−1} p (2 + u + (γ − 1) p ρ),     A = Σ_j a_j

    g = A p − a,     ∇²ℓ = A S + Σ_j b_j (e_j − p)(e_j − p)ᵀ,     S = diag(p) − p pᵀ.

The first terms are those of a cross-entropy with targets a, and stable as such. For p → 1, u = −log1p(E) and c =
E/(1 + E) have all their digits. b is negative where p is small, so that ∇²ℓ is not semidefinite: such a sample pulls
less the surer the model is of another class.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from wsb_engine.curvature.losses.base import LossDerivatives, Output, across
from wsb_engine.curvature.losses.cross_entropy import CrossEntropy, SoftmaxDerivatives, margins_of, pivot
from wsb_engine.options import LossKind, Options

TINIEST = 1e-290
"""Least 1 − p whose powers are taken: with a smaller one, c^γ and its derivatives times 1 − p underflow anyway."""


@dataclass(frozen=True)
class Focal(CrossEntropy):
    """Focal loss of the softmax of the logits; targets are rows (N, C), not negative.

    Class weights multiply the targets, as α does; the mean is over samples and does not divide by them. With
    ``focal_gamma`` 0 and no class weights it is the cross-entropy.
    """

    kind: ClassVar[LossKind] = "focal"
    convex: ClassVar[bool] = False
    settings = frozenset({"class_weights", "focal_gamma", "ignore_index"})

    focal_gamma: float = 2.0

    @property
    def sums(self) -> int:
        return 1

    def configured(self, options: Options, output: Output) -> Focal:
        rows = super().configured(options, output)
        return Focal(rows.class_weights, focal_gamma=options.focal_gamma)

    def values(self, z: Tensor, y: Tensor) -> Tensor:
        """Return ℓ of each sample, (N,) float64; its derivatives of every order are stable.

        ln (1 − p) of the pivot is that of the sum of the others, and c^γ its exponential: powers of c itself would
        leave the range of numbers long before their products with derivatives of c do.
        """
        z, y = z.double(), y.double()
        margins = margins_of(z, y)
        u = margins.d - margins.normaliser.unsqueeze(1)
        _, is_pivot = pivot(z)
        below = torch.logsumexp(margins.others, dim=1) - margins.normaliser
        # Where one branch is taken, the derivatives of the other must be finite too.
        direct = torch.log1p(-torch.where(is_pivot | (y == 0), -1.0, u).exp())
        log_c = torch.where(is_pivot, below.unsqueeze(1), direct)
        return -(y * (self.focal_gamma * log_c).exp() * u).sum(dim=1)

    def derivatives(self, z: Tensor, y: Tensor) -> FocalDerivatives:  # type: ignore[override]
        z, y, gamma = z.double(), y.double(), self.focal_gamma
        at, margins = super().derivatives(z, y), margins_of(z, torch.ones_like(z))
        p, c = at.p, at.complement
        u = margins.d - margins.normaliser.unsqueeze(1)
        ratio = torch.where(c < TINIEST, 1.0, -u / c.clamp(min=TINIEST))
        a = y * c.pow(gamma) * (1 + gamma * p * ratio)
        b = y * gamma * c.clamp(min=TINIEST).pow(gamma - 1) * p * (2 + u + (gamma - 1) * p * ratio)
        return FocalDerivatives(super().derivatives(z, a), b)

    def mass(self, y: Tensor) -> None:
        return None

    def guess(self, logits: int) -> float:
        return max(self.class_weights or (1.0,)) * math.pow(1 - 1 / logits, self.focal_gamma) * super().guess(logits)

    def targets(self, y: Tensor, logits: int) -> Tensor:
        rows = self.label_rows(y, logits)
        return rows if self.class_weights is None else rows * self.weights(rows, relative=False)


@dataclass(frozen=True)
class FocalDerivatives(LossDerivatives):
    """g and ∇²ℓ of B samples: those of a cross-entropy with targets a, and the curvature of the weights."""

    at: SoftmaxDerivatives
    """At targets a."""
    b: Tensor
    """(B, C)"""

    @property
    def gradient(self) -> Tensor:  # type: ignore[override]
        return self.at.gradient

    @property
    def diagonal(self) -> Tensor:
        p, c = self.at.p, self.at.complement
        # Of the pivot, whose b may be far larger than all others, these are summed without it.
        rest = self.b.scatter(1, self.at.pivot, 0.0).sum(dim=1, keepdim=True)
        others = (self.b.sum(dim=1, keepdim=True) - self.b).scatter(1, self.at.pivot, rest)
        return self.at.diagonal + self.b * c.square() + others * p.square()

    def curvature(self) -> Tensor:
        # Column j is e_j − p.
        M = (-self.at.p).unsqueeze(2).expand(-1, -1, self.b.shape[1])
        M = M.diagonal_scatter(self.at.complement, dim1=1, dim2=2)
        return self.at.curvature() + (M * self.b.unsqueeze(1)) @ M.transpose(1, 2)

    def factor(self) -> Tensor:
        raise NotImplementedError("the curvature of a focal loss is not semidefinite")

    def factor_times(self, W: Tensor) -> Tensor:
        raise NotImplementedError("the curvature of a focal loss is not semidefinite")

    def column_product(self, scale: float) -> Callable[[Tensor], Tensor]:
        at = self.at
        own = at.column_product(scale)
        p, pivot_, shift, b = (across(each) for each in (at.p, at.pivot, at.shifts, scale * self.b))

        def product(r: Tensor) -> Tensor:
            index = pivot_.expand(1, r.shape[1], -1)
            shifted = r - torch.where(shift, r.gather(0, index), 0.0)
            v = b * (shifted - (p * shifted).sum(dim=0, keepdim=True))
            image = v - p * v.sum(dim=0, keepdim=True)
            # The entries add up to 0; of a sure sample the largest would cancel.
            others = image.scatter(0, index, 0.0).sum(dim=0, keepdim=True)
            image = image.scatter(0, index, torch.where(shift, -others, image.gather(0, index)))
            return own(r).add_(image)

        return product


LOSS = Focal()
