"""The Lanczos recurrence without a basis: memory for three vectors, however many products (mathematics.md, section 6).

Each residual is orthogonalised twice, against the last two vectors alone. What that removes along q_{j−1} is part of
T, as γ_j. Orthogonality to older vectors is lost as Ritz values converge; the bound of ``bounds.lanczos_polynomial``
assumes none. The run ends at a breakdown, whose β stays in that bound.

Linear combinations of the vectors come from a second pass, which repeats the recurrence from the same start. It needs
no products for vectors that were kept for it; the recurrence itself never reads them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from wsb_engine.spectrum.run import BREAKDOWN, TILE, UNIT, Run, dot, norm, on_sphere


@dataclass(frozen=True)
class _Step:
    """Coefficients of one step, and its residual in float64."""

    alpha: float
    gamma: float
    left: float
    """Size of a correction along q_{j−1} that is not part of γ."""
    beta: float
    residual: Tensor


class ThreeVectors(Run):
    """A Lanczos run that needs the last two vectors and the residual.

    Args:
        product, parameters, device, seed, unit, homogeneity: As for ``Run``.
        spare: Most vectors to keep for linear combinations, the first ones.
    """

    def __init__(
        self,
        product: Callable[[Tensor], Tensor],
        parameters: int,
        device: torch.device,
        seed: int,
        unit: float,
        *,
        homogeneity: bool = False,
        spare: int = 0,
    ) -> None:
        super().__init__(product, parameters, device, seed, unit, homogeneity=homogeneity)
        self._spare = spare
        self._kept: list[Tensor] = []
        self._previous: Tensor | None = None
        self._next: Tensor | None = None
        self._over = False
        self.quotients: list[float] = []
        """q_j·(σHq_j) / ‖q_j‖²: Rayleigh quotients, which need no orthogonality."""

    @property
    def ended(self) -> bool:
        return self._over or self.first_breakdown is not None

    @property
    def repeated(self) -> int:
        return max(0, self.steps - max(1, len(self._kept)))

    def end(self) -> None:
        """Take no more steps, and free the vectors that the next would need."""
        self._over, self._previous, self._next = True, None, None

    def forget(self) -> None:
        """Free the vectors that were kept for linear combinations, and keep no more."""
        self._spare = 0
        self._kept.clear()

    def step(self) -> None:
        if self.ended:
            raise ValueError("the run has ended")
        q = self._start() if self._next is None else self._next
        if self.steps < self._spare:
            self._kept.append(q)
        image = self.image(q)
        applied = norm(image)
        self.measure_homogeneity(q, image, max(applied, self.norm_estimate))
        quotient = dot(q, image) / dot(q, q)
        before = self.betas[-1] if self.betas else 0.0
        found = _recur(image, q, self._previous, before)
        # The cast adds u β, and lets the next vector be as much longer than 1.
        rounding = 2 * UNIT * (applied + 2 * abs(found.alpha) + 2 * before + 2 * found.beta)
        self.errors.append(1.01 * (found.left + rounding + 2 * self.storage_error * found.beta))
        self.alphas.append(found.alpha)
        self.betas.append(found.beta)
        self.gammas.append(found.gamma)
        self.norms.append(applied)
        self.quotients.append(quotient)
        if found.beta <= BREAKDOWN * UNIT * applied:
            self.first_breakdown = self.steps
            self._previous = self._next = None
            return
        self._previous, self._next = q, self._normalised(found, self._previous)

    def combinations(self, weights: Tensor) -> Tensor:
        """Compute Q W, (P, m) in the dtype of the vectors, for W (k, m), by ``repeated`` further products.

        If products are not reproducible, these are not the vectors of the run; a Rayleigh quotient holds all the same.
        """
        columns = weights.tolist()
        total = torch.zeros(weights.shape[1], self.parameters, dtype=self.dtype, device=self.device)
        previous: Tensor | None = None
        q, before = self._start(), 0.0
        for j, row in enumerate(columns):
            if j < len(self._kept):
                previous, q, before = (self._kept[j - 1], self._kept[j], self.betas[j - 1]) if j else (None, q, 0.0)
            for sums, weight in zip(total, row, strict=True):
                for piece, part in zip(sums.split(TILE), q.split(TILE), strict=True):
                    piece.add_(part.to(piece.dtype), alpha=weight)
            if j + 1 == len(columns):
                break
            if j + 1 < len(self._kept):
                continue
            found = _recur(self.image(q), q, previous, before)
            if found.beta == 0:
                break
            previous, q, before = q, self._normalised(found, previous), found.beta
            del found  # before the next product takes as much memory
        return total.T

    def _start(self) -> Tensor:
        """Draw the start vector, uniform on the sphere, in float64."""
        return on_sphere(self.parameters, self.seed, 0, self.device)

    def _normalised(self, found: _Step, previous: Tensor | None) -> Tensor:
        """Return q_{j+1}, in the memory of q_{j−1} if that has the right dtype and is not kept."""
        reusable = previous is not None and previous.dtype == self.dtype
        reusable = reusable and all(previous is not kept for kept in self._kept)
        q = (
            previous
            if previous is not None and reusable
            else found.residual.new_empty(self.parameters, dtype=self.dtype)
        )
        for piece, part in zip(q.split(TILE), found.residual.split(TILE), strict=True):
            piece.copy_(part / found.beta)
        return q

    def _off_diagonal(self) -> list[float]:
        return [(beta * gamma) ** 0.5 for beta, gamma in zip(self.betas, self.gammas[1:], strict=False)]


def _recur(w: Tensor, q: Tensor, previous: Tensor | None, before: float) -> _Step:
    """Orthogonalise w = σHq against q and q_{j−1}, twice; writes into w."""
    older = q if previous is None else previous
    alpha = _removed(w, before, older, q)
    again = _removed(w, alpha, q, q)
    back = _removed(w, again, q, older)
    gamma, left = 0.0, 0.0
    if previous is not None:
        _removed(w, back, older, older)
        gamma, left = (before + back, 0.0) if before + back >= 0 else (before, abs(back))
    return _Step(alpha + again, gamma, left, norm(w), w)


def _removed(w: Tensor, coefficient: float, q: Tensor, along: Tensor) -> float:
    """Replace w by w − coefficient · q, and return its dot product with ``along``, in float64 by tiles."""
    total = torch.zeros((), dtype=torch.float64, device=w.device)
    for rest, part, direction in zip(w.split(TILE), q.split(TILE), along.split(TILE), strict=True):
        if coefficient:
            rest.sub_(part.double(), alpha=coefficient)
        total += direction.double() @ rest
    return float(total)
