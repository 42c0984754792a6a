"""vᵀ∇²ℓ_s v of each row s: the curvature of every row along a direction (mathematics.md, section 14).

For H(c) = Σ_s c_s ∇²ℓ_s, vᵀH(c)v is linear in the weights c, and its derivative in c_s is the form of row s. So one
Hessian-vector product of a tile of rows, differentiated once more in their weights, gives the forms of all of them. The
derivatives in the parameters are those of products, which two levels of forward mode are not: torch takes the
statistics of its layer normalisation for constants there.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.func import grad, jvp

from wsb_engine import devices
from wsb_engine.curvature.products.autodiff import FORWARD_MODE, PRODUCT_SAMPLES, Chunk, Objective, interrupted
from wsb_engine.memory import ran_out
from wsb_engine.model import Tensors

HELD = 4
"""Arrays held for each intermediate of a gradient: it, its derivative along v, and what reverse mode keeps of both."""


def row_forms(
    objective: Objective, V: Tensor, column: Tensor, alone: Callable[[int, Tensor], float], *, tiled: bool = True
) -> Tensor:
    """Compute scale · vᵀ∇²ℓ_s v of each row by automatic differentiation, (N,) float64 on the CPU; rows are tiled.

    Args:
        objective: The loss; its samples do not depend on each other.
        V: (P, m) directions in the working dtype.
        column: (N,) int64 on the CPU: the direction of each row; −1 for rows to leave out, whose form is 0.
        alone: Computes the form of one row, given by index, along a direction (P,): for operators that torch can't
            differentiate once more, and for a single row that does not fit in memory otherwise.
        tiled: False to use nothing else.
    """
    total = torch.zeros(len(column), dtype=torch.float64)
    size = max(1, min(PRODUCT_SAMPLES, objective.fits // HELD))
    for j, v in enumerate(V.unbind(dim=1)):
        direction, rest = objective.unflatten(v.contiguous()), torch.nonzero(column == j).squeeze(1)
        while len(rest):
            objective.pause()
            rows = rest[: size if tiled else 1]
            if not tiled:
                total[rows] = alone(int(rows), v)
            elif (failure := _attempt(objective, direction, rows, total)) is not None:
                devices.release(v.device)
                tiled, size = failure == "memory" and len(rows) > 1, max(1, len(rows) // 2)
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

    def curvature(weights: Tensor) -> Tensor:
        gradient = grad(partial(objective.value, chunk=Chunk(chunk.inputs, chunk.y, weights)))
        along: Tensors = jvp(gradient, (point,), (direction,))[1]
        return torch.stack([(along[name] * part).sum(dtype=torch.float64) for name, part in direction.items()]).sum()

    with FORWARD_MODE:
        forms: Tensor = grad(curvature)(torch.ones_like(chunk.weights))
    return forms
