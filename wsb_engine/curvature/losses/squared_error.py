"""Squared error of a regressor: the mean over the numbers that it gives for a sample, as over samples.

With C numbers, ℓ = Σ_j (z_j − y_j)²/C, g = 2 (z − y)/C and ∇²ℓ = 2/C times the identity.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wsb_engine.curvature.losses.base import UNIT, ElementwiseDerivatives, Loss, LossRounding


class SquaredError(Loss):
    """Mean squared error, as ``torch.nn.MSELoss``; the model's output as it is takes the place of logits."""

    kind = "squared_error"
    form = "values"

    def values(self, z: Tensor, y: Tensor) -> Tensor:
        return (z.double() - y).square().mean(dim=1)

    def derivatives(self, z: Tensor, y: Tensor) -> SquaredDerivatives:
        distance = z.double() - y
        second = torch.full_like(distance, 2 / z.shape[1])
        return SquaredDerivatives(second * distance, second, distance.abs())

    def correct(self, z: Tensor, y: Tensor) -> None:
        return None

    def classes(self, logits: int) -> None:
        return None

    def distributions(self, z: Tensor) -> None:
        return None

    def targets(self, y: Tensor, logits: int) -> Tensor:
        return y.reshape(len(y), -1).double()


@dataclass(frozen=True)
class SquaredDerivatives(ElementwiseDerivatives):
    """g and the diagonal of ∇²ℓ of B samples, (B, C) each; all float64."""

    distance: Tensor
    """|z − y|"""

    def rounding(self, z: Tensor, y: Tensor, radius: Tensor) -> LossRounding:
        """Bound the rounding errors (mathematics.md, section 11)."""
        return LossRounding(
            gradient=self.second * (radius + 4 * UNIT * (self.distance + radius)) * (1 + 8 * UNIT),
            curvature=torch.full_like(self.distance[:, 0], 4 * UNIT),
            total=torch.ones_like(self.distance[:, 0]),
            norm=lambda X, Y: (self.second * X * Y).sum(dim=1),
        )


LOSS = SquaredError()
