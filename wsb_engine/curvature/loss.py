"""Cross-entropy of logits, and the targets it is taken against.

L(θ) = Σ_s w_s ℓ_s with Σ_s w_s = 1 (mathematics, section 1): softmax cross-entropy for C ≥ 2 logits, binary
cross-entropy for one.

Whatever the dtype of the logits, this is float64: p − y and diag(p) − p pᵀ are differences, and of a confident model
they are a millionth of their terms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["cross_entropy", "binary_cross_entropy"]


@dataclass(frozen=True)
class Targets:
    """What the logits are compared with."""

    y: Tensor
    """(N, C) rows on the simplex, or (N, 1) probabilities of the positive class."""
    weights: Tensor
    """(N,) float64, non-negative, of sum 1."""

    @property
    def kind(self) -> Kind:
        return "binary_cross_entropy" if self.y.shape[1] == 1 else "cross_entropy"


def sample_losses(z: Tensor, y: Tensor) -> Tensor:
    """ℓ_s of shape (N,) float64, from logits z and targets y of the same shape (N, C) or (N, 1)."""
    z, y = z.double(), y.double()
    if z.shape[1] == 1:
        return (torch.logaddexp(z, torch.zeros_like(z)) - y * z).squeeze(1)
    return torch.logsumexp(z, dim=1) - (y * z).sum(dim=1)


def probabilities(z: Tensor) -> Tensor:
    """p of z's shape, float64: softmax rows, or σ(z) for one logit."""
    z = z.double()
    return torch.sigmoid(z) if z.shape[1] == 1 else torch.softmax(z, dim=1)


def accuracy(z: Tensor, targets: Targets) -> float:
    """Weighted share of samples whose most probable class is the label's most probable class."""
    if z.shape[1] == 1:
        correct = (z.squeeze(1) > 0) == (targets.y.squeeze(1) > 0.5)
    else:
        correct = z.argmax(dim=1) == targets.y.argmax(dim=1)
    return float((correct.double() * targets.weights).sum())
