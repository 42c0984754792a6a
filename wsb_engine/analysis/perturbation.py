"""The same function at slightly different parameters and inputs, to measure rounding (mathematics.md, section 11)."""

from __future__ import annotations

import math
from dataclasses import replace

from torch import Tensor

from wsb_engine.curvature.products.autodiff import Objective
from wsb_engine.model import Tensors
from wsb_engine.random_vectors import uniform

PERTURBATION = 2.0**-43
"""Relative size of a perturbation, in which H is linear except for cancellations that leave no digits anyway."""


def perturbed(objective: Objective, seed: int) -> Objective:
    """Multiply every parameter and floating-point input by 1 + εξ; an exact zero stays one.

    Args:
        objective: Objective in float64.
        seed: Seed of ξ, which is uniform with unit variance.
    """

    def moved(tensor: Tensor, stream: int) -> Tensor:
        # In place, because a model's largest tensor may be a third of it.
        xi = uniform(tensor.numel(), seed, stream, tensor.device).view(tensor.shape).mul_(2 * math.sqrt(3))
        return tensor * xi.mul_(PERTURBATION).add_(1)

    def all_moved(tensors: Tensors, first: int) -> dict[str, Tensor]:
        return {name: moved(tensor, first + i) for i, (name, tensor) in enumerate(tensors.items())}

    count = len(objective.selected)
    return replace(
        objective,
        selected=all_moved(objective.selected, 0),
        fixed=all_moved(objective.fixed, count),
        disturb=lambda tensor, place: moved(tensor, -1 - place),
    )
