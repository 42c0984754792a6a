"""Binary cross-entropy of one logit in forms that do not cancel (mathematics.md, section 10).

With a = |z| and e = exp(−a), the smaller and the larger of p and 1 − p are e/(1 + e) and 1/(1 + e), and

    ℓ = log1p(e) + a · (weight of the other class),     g = (1 − y) p − y (1 − p),     ∇²ℓ = p (1 − p).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wsb_engine.curvature.losses.base import (
    ELEMENTARY,
    UNIT,
    ElementwiseDerivatives,
    Loss,
    LossRounding,
    mismatched,
    of_product,
)


class BinaryCrossEntropy(Loss):
    """Cross-entropy of the sigmoid of one logit; targets are probabilities of the positive class, (N, 1)."""

    kind = "binary_cross_entropy"

    def values(self, z: Tensor, y: Tensor) -> Tensor:
        z, y = z.double(), y.double()
        positive = z.detach() >= 0
        # `abs` has the derivative 0 at 0.
        a = torch.where(positive, z, -z)
        return (torch.log1p(torch.exp(-a)) + torch.where(positive, 1 - y, y) * a).squeeze(1)

    def derivatives(self, z: Tensor, y: Tensor) -> SigmoidDerivatives:
        z, y = z.double(), y.double()
        positive = z.detach() >= 0
        e = torch.exp(torch.where(positive, -z, z))
        small, large = e / (1 + e), 1 / (1 + e)
        p, complement = torch.where(positive, large, small), torch.where(positive, small, large)
        return SigmoidDerivatives((1 - y) * p - y * complement, p * complement, p, complement)

    def correct(self, z: Tensor, y: Tensor) -> Tensor:
        return (z.squeeze(1) > 0) == (y.squeeze(1) > 0.5)

    def classes(self, logits: int) -> int:
        return 2

    def targets(self, y: Tensor, logits: int) -> Tensor:
        if y.ndim == 1 or y.shape[1] == 1:
            return y.reshape(-1, 1).double()
        if y.shape[1] != 2:
            raise mismatched(y.shape[1], 2)
        return y[:, 1:].double()


@dataclass(frozen=True)
class SigmoidDerivatives(ElementwiseDerivatives):
    """g and ∇²ℓ = p (1 − p) of B samples, (B, 1) each; all float64."""

    p: Tensor
    """Probability of the positive class."""
    complement: Tensor
    """1 − p"""

    def rounding(self, z: Tensor, y: Tensor, radius: Tensor) -> LossRounding:
        """Bound the rounding errors (mathematics.md, section 11)."""
        relative = torch.expm1(radius) + 4 * ELEMENTARY * UNIT
        return LossRounding(
            gradient=(relative + 4 * UNIT) * ((1 - y) * self.p + y * self.complement),
            curvature=of_product(relative).squeeze(1),
            total=torch.full_like(self.p.squeeze(1), 1 + 4 * UNIT),
            norm=lambda X, Y: (self.second * X * Y).sum(dim=1),
        )


LOSS = BinaryCrossEntropy()
