"""Folds of the rows for cross-fitting: random, since files are often sorted (mathematics.md, section 14)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wsb_engine.random_vectors import uniform

FOLDS = 5
"""K: each fold is left out once."""
STREAM = 1 << 36
"""Separates the random numbers of the folds from those of other purposes."""


@dataclass(frozen=True)
class Fold:
    """One fold of a batch, by number; the same on every device and in every process."""

    index: int
    seed: int

    def left_out(self, weights: Tensor) -> Tensor:
        """Return the weights with those of the fold's rows set to 0, (N,) float64.

        Eigenvectors do not depend on the sum of the weights, which are not normalised again.

        Args:
            weights: (N,) weights of all rows of the batch.
        """
        members = (folds(weights, self.seed) == self.index).to(weights.device)
        return torch.where(members, 0.0, weights)


def folds(weights: Tensor, seed: int) -> Tensor:
    """Return the number of each row's fold, (N,) int64 on the CPU; −1 for rows without a weight.

    Args:
        weights: (N,) weights of all rows of the batch.
        seed: Seed of the analysis.
    """
    counted = torch.nonzero(weights.cpu() > 0).squeeze(1)
    order = torch.argsort(uniform(len(counted), seed, STREAM), stable=True)
    numbers = torch.full((len(weights),), -1)
    numbers[counted[order]] = torch.arange(len(counted)) % FOLDS
    return numbers
