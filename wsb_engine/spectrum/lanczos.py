"""The Lanczos recurrence with full reorthogonalisation, resumable, through breakdowns (mathematics.md, section 6).

For every ‖f_j‖ there is a bound that comes from the recurrence itself: what reorthogonalisation removed along older
vectors, rounding, and the residual dropped at a breakdown. γ_j differs from β_{j−1} by rounding.

The basis is kept in the dtype of the products, sums are in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from wsb_engine.spectrum.run import BREAKDOWN, UNIT, Run, norm, on_sphere

ROWS = 16
"""Most basis vectors allocated at a time."""
BLOCK_BYTES = 256 << 20
"""Bytes of basis vectors allocated at a time, unless one vector takes more."""
COLUMNS = 1 << 12
"""Entries summed at a time in a dot product; bounds its rounding, whatever the library."""
PIECE = 1 << 16
"""Entries of a block of rows that are converted to float64 at a time."""
PASSES = 6
"""Most passes of orthogonalisation; a vector that each of them halves is rounding."""


class Lanczos(Run):
    """A Lanczos run that keeps its basis.

    Args:
        product, parameters, device, seed, unit, homogeneity: As for ``Run``.
        locked: (m, P) orthonormal rows; the run stays in their complement, with H compressed to it.
    """

    def __init__(
        self,
        product: Callable[[Tensor], Tensor],
        parameters: int,
        device: torch.device,
        seed: int,
        unit: float,
        locked: Tensor | None = None,
        *,
        homogeneity: bool = False,
    ) -> None:
        super().__init__(product, parameters, device, seed, unit, homogeneity=homogeneity)
        self._locked = [] if locked is None else [locked]
        self.dimension = parameters - (0 if locked is None else len(locked))
        """Dimension of the space that the run can span."""
        self._rows = max(1, min(ROWS, parameters, BLOCK_BYTES // (self.dtype.itemsize * parameters)))
        self._drawn = 0
        self._blocks: list[Tensor] = []
        self._gram_square = 0.0
        self._next: Tensor | None = None
        if self.dimension:
            self._accept(self._random())

    @property
    def exhausted(self) -> bool:
        """True if Q spans the whole space; T then has all eigenvalues of σH."""
        return self.steps == self.dimension

    @property
    def ended(self) -> bool:
        return self.exhausted

    @property
    def basis(self) -> Tensor:
        """(k, P) copy of the basis, one vector per row."""
        return torch.cat(self._blocks)[: self.steps]

    def orthogonality(self, *, proven: bool) -> float:
        """Compute ‖QᵀQ − I‖_F for the k + 1 vectors so far.

        Args:
            proven: True for an upper bound; False for the computed value plus its typical rounding.
        """
        terms = min(self.parameters, COLUMNS) + -(-self.parameters // COLUMNS) + 1
        return math.sqrt(self._gram_square) + (self.steps + 1) * UNIT * (terms if proven else 8)

    def step(self) -> None:
        if self._next is None:
            raise ValueError("the Krylov basis spans the whole space")
        q, j = self._next, self.steps
        image = self.image(q)
        applied = norm(image)
        self.measure_homogeneity(q, image, max(applied, self.norm_estimate))
        if j % self._rows == 0:
            self._blocks.append(q.new_zeros(self._rows, self.parameters, dtype=self.dtype))
        self._blocks[-1][j % self._rows] = q
        residual, coefficients, rounding = self._orthogonalised(image)
        beta = norm(residual)
        # Coefficients along q_j and q_{j−1} belong to T, those along older and locked vectors to f_j.
        *older, alpha = coefficients.tolist()
        # The start vector is in float64, but removed as it is kept; the cast of the next one adds u β, and lets it be
        # as much longer than 1.
        cast = self.storage_error * (abs(float(coefficients[0])) + 2 * beta)
        gamma = older.pop() if older and older[-1] > 0 and self.betas[j - 1] > 0 else 0.0
        error = 1.01 * math.hypot(*older) + rounding + 2 * UNIT * (abs(alpha) + gamma + beta) + cast
        self.alphas.append(alpha)
        self.gammas.append(gamma)
        self.norms.append(applied)
        if beta > BREAKDOWN * UNIT * applied:
            self.betas.append(beta)
            self.errors.append(error)
            self._accept((residual / beta).to(self.dtype))
            return
        self.betas.append(0.0)
        self.errors.append(error + beta)
        self.first_breakdown = self.first_breakdown or self.steps
        self._next = None
        if not self.exhausted:
            self._accept(self._random().to(self.dtype))

    def complement(self, v: Tensor) -> Tensor:
        """Project v onto the orthogonal complement of the basis."""
        return self._orthogonalised(v.clone())[0]

    def ritz_pairs(self, count: int) -> tuple[Tensor, Tensor]:
        """Compute the largest Ritz values of σH, ascending, and their Ritz vectors (P, count) on the working device."""
        values, vectors = torch.linalg.eigh(self.tridiagonal)
        return values[-count:], self.combinations(vectors[:, -count:])

    def combinations(self, weights: Tensor) -> Tensor:
        """Compute Q W, (P, m) float64, for W (k, m), without a copy of Q."""
        parts = weights.to(self.device).split(self._rows)
        total = weights.new_zeros(self.parameters, weights.shape[1], device=self.device)
        for block, part in zip(self._blocks, parts, strict=True):
            for columns, sums in _pieces(block[: len(part)], total):
                sums += columns.T @ part
        return total

    def _off_diagonal(self) -> list[float]:
        return self.betas[: max(self.steps - 1, 0)]

    def _accept(self, q: Tensor) -> None:
        """Make q the next basis vector, and add its departure from orthonormality to ‖QᵀQ − I‖_F²."""
        self._next, kept = q, q.to(self.dtype)
        if self._blocks:
            self._gram_square += 2 * float(torch.cat([_dots(Q, kept) for Q in self._blocks]).square().sum())
        self._gram_square += (float(_dots(kept.unsqueeze(0), kept)) - 1) ** 2

    def _random(self) -> Tensor:
        """Draw a unit vector uniformly from the sphere in the complement of Q."""
        while True:
            v = on_sphere(self.parameters, self.seed, self._drawn, self.device)
            self._drawn += 1
            if not self._locked and not self._blocks:
                return v
            v = self._orthogonalised(v)[0]
            length = norm(v)
            # If few dimensions remain, little of a random vector does; that little must not be rounding.
            if length > 1e-8:
                v = self._orthogonalised(v / length)[0]
                unit: Tensor = v / torch.linalg.vector_norm(v)
                return unit

    def _orthogonalised(self, v: Tensor) -> tuple[Tensor, Tensor, float]:
        """Orthogonalise v against locked and basis vectors; writes into it.

        Subtracting Σ c_i q_i of a block of m rows rounds by at most u‖v‖ + (m + 2) u Σ |c_i|.

        Returns:
            The rest of v, the coefficients removed along the basis, and a bound on the rounding.
        """
        taken = torch.zeros(len(self._blocks) * self._rows, dtype=torch.float64, device=v.device)
        rounding, length = 0.0, norm(v)
        for turn in range(PASSES):
            before, removed = length, []
            for Q in [*self._locked, *self._blocks]:
                # Rows not filled yet are 0.
                removed.append(_coefficients(Q, v))
                for columns, part in _pieces(Q, v):
                    part.addmv_(columns.T, removed[-1], alpha=-1)
            length = norm(v)
            if removed:
                along = torch.cat(removed)
                taken += along[len(along) - len(taken) :]
                rounding += (max(map(len, removed)) + 2) * UNIT * float(along.abs().sum())
            rounding += (len(removed) + 2) * UNIT * before
            # Twice is enough (Kahan, Parlett), unless the first pass left next to nothing.
            if turn and length >= before / 2:
                return v, taken[: self.steps + 1].cpu(), rounding
        return torch.zeros_like(v), taken[: self.steps + 1].cpu(), rounding + length


def _pieces(Q: Tensor, v: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield columns of Q (m, P) in float64 with the same rows of v (P, …); all at once if Q is in float64."""
    size = Q.shape[1] if Q.dtype == torch.float64 else PIECE
    for columns, part in zip(Q.split(size, dim=1), v.split(size), strict=True):
        yield columns.double(), part


def _coefficients(Q: Tensor, v: Tensor) -> Tensor:
    """Compute Q v for rows Q (m, P)."""
    first, *others = (columns @ part for columns, part in _pieces(Q, v))
    return sum(others, first)


def _dots(Q: Tensor, v: Tensor) -> Tensor:
    """Compute Q v in float64 for rows Q (m, P), summed in pieces of ``COLUMNS`` entries."""
    if len(v) <= COLUMNS:
        return Q.double() @ v.double()
    total = Q.new_zeros(len(Q), dtype=torch.float64)
    for rows, piece in zip(Q.split(COLUMNS, dim=1), v.split(COLUMNS), strict=True):
        total += rows.double() @ piece.double()
    return total
