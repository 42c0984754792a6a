"""Binary cross-entropy of logits in forms that do not cancel (mathematics.md, section 10).

With a = |z| and e = exp(−a), the smaller and the larger of p and 1 − p are e/(1 + e) and 1/(1 + e). With weights b of
the positive and c of the negative class, which are y and 1 − y if nothing else is set,

    ℓ = (b + c) log1p(e) + a · (weight of the other class),     g = c p − b (1 − p),     ∇²ℓ = (b + c) p (1 − p).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from wsb_engine.curvature.losses.base import (
    ELEMENTARY,
    UNIT,
    ElementwiseDerivatives,
    Loss,
    LossRounding,
    Output,
    mismatched,
    of_product,
)
from wsb_engine.errors import OptionsError
from wsb_engine.options import LossKind, Options


@dataclass(frozen=True)
class BinaryCrossEntropy(Loss):
    """Cross-entropy of the sigmoids of logits, summed over them.

    Targets are probabilities of the positive class, (N, C), or the weights b and c, (N, 2, C).
    """

    kind: ClassVar[LossKind] = "binary_cross_entropy"
    settings = frozenset({"pos_weight", "ignore_index"})

    pos_weight: tuple[float, ...] | None = None

    def configured(self, options: Options, output: Output) -> BinaryCrossEntropy:
        if output.sizes != (1,):
            raise OptionsError(
                f"{self.kind} takes one logit, the model gives {math.prod(output.sizes)}",
                code="loss_mismatch",
                advice="Set loss to cross_entropy if they are the logits of classes of which one is true.",
                loss=self.kind,
                logits=math.prod(output.sizes),
            )
        return self.weighted(options, 1)

    def weighted(self, options: Options, logits: int) -> BinaryCrossEntropy:
        weights = options.pos_weight
        if weights is not None and len(weights) not in (1, logits):
            raise OptionsError(
                f"pos_weight has {len(weights)} numbers, the model gives {logits} logits",
                code="pos_weight_mismatch",
                advice="Give one number, or one for each logit.",
                expected=logits,
                actual=len(weights),
            )
        return replace(self, pos_weight=weights)

    def values(self, z: Tensor, y: Tensor) -> Tensor:
        z, (b, c) = z.double(), _weights(y)
        positive = z.detach() >= 0
        # `abs` has the derivative 0 at 0.
        a = torch.where(positive, z, -z)
        return ((b + c) * torch.log1p(torch.exp(-a)) + torch.where(positive, c, b) * a).sum(dim=1)

    def derivatives(self, z: Tensor, y: Tensor) -> SigmoidDerivatives:
        z, (b, c) = z.double(), _weights(y)
        positive = z.detach() >= 0
        e = torch.exp(torch.where(positive, -z, z))
        small, large = e / (1 + e), 1 / (1 + e)
        p, complement = torch.where(positive, large, small), torch.where(positive, small, large)
        return SigmoidDerivatives(c * p - b * complement, (b + c) * p * complement, p, complement)

    def correct(self, z: Tensor, y: Tensor) -> Tensor:
        return (z.squeeze(1) > 0) == ((y if y.ndim == 1 else y[:, -1]) > 0.5)

    def guess(self, logits: int) -> float:
        return math.log(2) * max((1.0, *(self.pos_weight or ())))

    def classes(self, logits: int) -> int:
        return 2

    def targets(self, y: Tensor, logits: int) -> Tensor:
        if y.ndim == 1 or y.shape[1] == 1:
            rows = y.reshape(-1, 1).double()
        elif y.shape[1] == 2:
            rows = y[:, 1:].double() / y.double().sum(dim=1, keepdim=True)
        else:
            raise mismatched(y.shape[1], 2)
        return rows if self.pos_weight is None else self.sides(rows)

    def sides(self, y: Tensor) -> Tensor:
        """Return the weights of both classes, (N, 2, C)."""
        weights = torch.tensor(self.pos_weight or (1.0,), dtype=torch.float64, device=y.device)
        return torch.stack([weights * y, 1 - y], dim=1)


def _weights(y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weights of the positive and of the negative class, (N, C) each."""
    y = y.double()
    return (y, 1 - y) if y.ndim == 2 else (y[:, 0], y[:, 1])


@dataclass(frozen=True)
class SigmoidDerivatives(ElementwiseDerivatives):
    """g and the diagonal of ∇²ℓ of B samples, (B, C) each; all float64."""

    p: Tensor
    """Probabilities of the positive class."""
    complement: Tensor
    """1 − p"""

    def rounding(self, z: Tensor, y: Tensor, radius: Tensor) -> LossRounding:
        """Bound the rounding errors (mathematics.md, section 11)."""
        relative = torch.expm1(radius) + 4 * ELEMENTARY * UNIT
        b, c = _weights(y)
        return LossRounding(
            gradient=(relative + 8 * UNIT) * (c * self.p + b * self.complement),
            curvature=of_product(relative).amax(dim=1) + 8 * UNIT,
            total=torch.full_like(self.p[:, 0], 1 + 4 * UNIT),
            norm=lambda X, Y: (self.second * X * Y).sum(dim=1),
        )


LOSS = BinaryCrossEntropy()
