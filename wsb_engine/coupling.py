"""Whether the logits of a sample depend on the other samples of its batch (batch statistics, attention over the batch).

Sums over chunks of samples are right only if they don't. So the logits of every row are evaluated in other company:
the batch is split at random, and what rounding alone would change is measured by perturbing parameters and inputs.
Because a coupling may be switched off at the given parameters (a branch that starts at zero), the same is done at
random ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from wsb_engine.curvature.hessian_product import Objective
from wsb_engine.curvature.memory import ran_out
from wsb_engine.perturbation import PERTURBATION, double, perturbed

SEED = 0x1B873593
"""Compositions have nothing to do with the seed of an analysis: the same file is coupled or not."""
UNIT = 2.0**-53
ROUNDING = 1e3
"""Units of rounding of the largest logit that another composition may change."""
SENSITIVITY = 256.0
"""Multiple of what a perturbation of the size of rounding changes, up to which a difference is rounding."""
DISPLACEMENT = 0.1
"""Relative size of the random change of parameters."""


def coupled(objective: Objective, logits: Callable[[Objective], Tensor]) -> bool:
    """True if rows change with their company by more than rounding.

    Args:
        objective: Not coupled, as far as it knows.
        logits: Evaluates (N, C) logits in chunks, float64 on the CPU.
    """
    if len(objective.targets.weights) < 2:
        return False
    exact = double(objective)
    return any(_changes(point, logits) for point in (exact, _displaced(exact)))


def _changes(objective: Objective, logits: Callable[[Objective], Tensor]) -> bool:
    samples = len(objective.targets.weights)
    generator = torch.Generator().manual_seed(SEED + samples)
    order = torch.randperm(samples, generator=generator)
    halves = order[: samples // 2], order[samples // 2 :]
    together = _evaluated(objective, logits)
    moved = _evaluated(perturbed(objective, SEED), logits)
    if together is None or moved is None:
        return False
    apart = torch.empty_like(together)
    for rows, others in (halves, halves[::-1]):
        found = _evaluated(_only(objective, rows), logits)
        if found is None:
            # The file may be fixed to a number of samples: the others become copies, in the same places.
            copied = torch.arange(samples)
            copied[others] = rows[torch.randint(len(rows), (len(others),), generator=generator)]
            whole = _evaluated(_only(objective, copied), logits)
            if whole is None:
                return False
            found = whole[rows]
        apart[rows] = found
    finite = torch.isfinite(together).all(dim=1) & torch.isfinite(apart).all(dim=1) & torch.isfinite(moved).all(dim=1)
    if not bool(finite.any()):
        return False
    together, apart, moved = together[finite], apart[finite], moved[finite]
    sensitivity = float((moved - together).abs().max()) * UNIT / PERTURBATION
    allowed = ROUNDING * UNIT * float(together.abs().max()) + SENSITIVITY * sensitivity
    return float((apart - together).abs().max()) > allowed


def _evaluated(objective: Objective, logits: Callable[[Objective], Tensor]) -> Tensor | None:
    """The logits; None if the model can't be evaluated so, which says nothing of its samples."""
    try:
        return logits(objective)
    except Exception as error:  # a module may raise anything
        if ran_out(error):
            raise
        return None


def _only(objective: Objective, rows: Tensor) -> Objective:
    """The same for some rows, in this order."""
    targets = objective.targets
    return replace(
        objective,
        inputs={name: tensor[rows] for name, tensor in objective.inputs.items()},
        targets=replace(targets, y=targets.y[:0], weights=targets.weights[rows.to(targets.weights.device)]),
    )


def _displaced(objective: Objective) -> Objective:
    """The objective at parameters moved at random, zeros included."""
    generator = torch.Generator().manual_seed(SEED)

    def moved(tensor: Tensor) -> Tensor:
        size = float(tensor.square().mean().sqrt()) if tensor.numel() else 0.0
        xi = torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.device)
        return tensor + DISPLACEMENT * (size or 1.0) * xi

    selected = {name: moved(tensor) for name, tensor in objective.selected.items()}
    return replace(objective, selected=selected, fixed={name: moved(t) for name, t in objective.fixed.items()})
