"""vᵀ∇²ℓ_s v of each row s: the curvature of every row along a direction (mathematics.md, section 16).

With logits z of the parameters θ + εv, and ′ for the derivative in ε at 0,

    vᵀ∇²ℓ_s v = z_s′ᵀ ∇²ℓ z_s′ + gᵀ z_s″

so two levels of forward mode give the forms of a tile of rows at once, without a backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.func import jvp

from wsb_engine import devices
from wsb_engine.curvature.losses.base import LossDerivatives, across
from wsb_engine.curvature.products.autodiff import FORWARD_MODE, GRADIENT_SAMPLES, Objective, interrupted
from wsb_engine.memory import ran_out
from wsb_engine.model import Tensors


def loss_forms(at: LossDerivatives, first: Tensor, scale: float) -> Tensor:
    """Compute scale · z′ᵀ ∇²ℓ z′ of B samples, (m, B) float64.

    Args:
        at: Derivatives of the loss at the logits.
        first: z′ along m directions, (C, m, B).
        scale: Factor of the loss.
    """
    image = at.column_product(scale)(first.to(torch.float64, copy=True))
    return (image * first).sum(dim=0)


def row_forms(
    objective: Objective, V: Tensor, column: Tensor, alone: Callable[[int, Tensor], float], *, forward: bool = True
) -> Tensor:
    """Compute scale · vᵀ∇²ℓ_s v of each row by automatic differentiation, (N,) float64 on the CPU; rows are tiled.

    Args:
        objective: The loss; its samples do not depend on each other.
        V: (P, m) directions in the working dtype.
        column: (N,) int64 on the CPU: the direction of each row; −1 for rows to leave out, whose form is 0.
        alone: Computes the form of one row, given by index, along a direction (P,): for operators that torch can't
            differentiate twice in forward mode, and for a single row that does not fit in memory in it.
        forward: False to use nothing else.
    """
    total = torch.zeros(len(column), dtype=torch.float64)
    size = max(1, min(GRADIENT_SAMPLES, objective.fits // 2))
    for j, v in enumerate(V.unbind(dim=1)):
        direction, rest = objective.unflatten(v.contiguous()), torch.nonzero(column == j).squeeze(1)
        while len(rest):
            objective.pause()
            rows = rest[: size if forward else 1]
            if not forward:
                total[rows] = alone(int(rows), v)
            elif (failure := _attempt(objective, direction, rows, total)) is not None:
                devices.release(v.device)
                forward, size = failure == "memory" and size > 1, max(1, len(rows) // 2)
                continue
            rest = rest[len(rows) :]
    return total


def _attempt(
    objective: Objective, direction: Tensors, rows: Tensor, total: Tensor
) -> Literal["memory", "operator"] | None:
    """Fill in the forms of some rows, or return why that failed; a failed attempt has released its memory."""
    try:
        total[rows] = _along(objective, direction, rows).cpu()
    except (MemoryError, RuntimeError) as error:
        if interrupted(error):
            raise
        return "memory" if ran_out(error) else "operator"
    return None


def _along(objective: Objective, direction: Tensors, rows: Tensor) -> Tensor:
    """Compute the forms of some rows, (B,) float64."""
    chunk, point = objective.chunk(rows), dict(objective.selected)

    def logits(selected: Tensors) -> Tensor:
        return objective.function({**objective.fixed, **selected}, chunk.inputs)

    def slope(selected: Tensors) -> tuple[Tensor, Tensor]:
        moved: tuple[Tensor, Tensor] = jvp(logits, (selected,), (direction,))
        return moved

    with FORWARD_MODE:
        (z, first), (_, second) = jvp(slope, (point,), (direction,))
    at = objective.loss.derivatives(z, chunk.y)
    bent = objective.scale * (at.gradient * second.double()).sum(dim=1)
    forms: Tensor = loss_forms(at, across(first.double()), objective.scale)[0] + bent
    return forms
