"""The Lanczos recurrence with full reorthogonalisation, resumable, through breakdowns.

After k steps H Q = Q T + β_k q_{k+1} e_kᵀ with orthonormal Q (P, k) and tridiagonal T: diagonal α, off-diagonal β.
Where a step finds an invariant subspace (β_j = 0) the next vector is drawn at random from the complement, and T falls
into blocks.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

BREAKDOWN = 64.0
"""β below this many units of rounding of ‖H‖ is a breakdown."""


ROWS = 16
"""Vectors of the basis that are allocated at a time."""


class Lanczos:
    """A Krylov run that can be continued step by step.

    Args:
        product: v (P,) → H v (P,) in float64.
        parameters: P.
        device: Where the vectors live.
        seed: Of the start vector, which is uniform on the sphere.
        unit: Rounding unit of the products.
        locked: (m, P) orthonormal rows; the run stays in their complement and sees H compressed to it.
    """

    def __init__(
        self,
        product: Callable[[Tensor], Tensor],
        parameters: int,
        device: torch.device,
        seed: int,
        unit: float,
        locked: Tensor | None = None,
    ) -> None:
        self._locked = [] if locked is None else [locked]
        self.dimension = parameters - (0 if locked is None else len(locked))
        """Of the space that the run can span."""
        self._product, self.device, self.unit = product, device, unit
        self._generator = torch.Generator().manual_seed(seed)
        self._blocks: list[Tensor] = []
        self.parameters = parameters
        self.alphas: list[float] = []
        self.betas: list[float] = []
        """β_1..β_k: the last is the norm of the residual; 0 after a breakdown."""
        self.first_breakdown: int | None = None
        """Steps after which the space of the start vector was exhausted."""
        self.scale = 0.0
        """Largest ‖H q‖ seen: a lower bound on ‖H‖."""
        self._next: Tensor | None = self._random() if self.dimension else None

    @property
    def steps(self) -> int:
        return len(self.alphas)

    @property
    def exhausted(self) -> bool:
        """Whether Q spans everything: then T has all eigenvalues of H."""
        return self.steps == self.dimension

    @property
    def basis(self) -> Tensor:
        """(k, P): the basis, a vector a row; a copy."""
        return torch.cat(self._blocks)[: self.steps]

    def step(self) -> None:
        """One product more.

        Raises:
            ValueError: when the basis is complete.
        """
        if self._next is None:
            raise ValueError("the Krylov basis spans the whole space")
        if self.steps % ROWS == 0:
            self._blocks.append(self._next.new_zeros(min(ROWS, self.parameters), self.parameters))
        self._blocks[-1][self.steps % ROWS] = self._next
        image = self._product(self._next)
        self.scale = max(self.scale, float(torch.linalg.vector_norm(image)))
        self.alphas.append(float(self._next @ image))
        residual = self._orthogonalised(image)
        beta = float(torch.linalg.vector_norm(residual))
        if beta > BREAKDOWN * self.unit * max(self.scale, torch.finfo(torch.float64).tiny):
            self.betas.append(beta)
            self._next = residual / beta
            return
        self.betas.append(0.0)
        self.first_breakdown = self.first_breakdown or self.steps
        self._next = None if self.exhausted else self._random()

    def complement(self, v: Tensor) -> Tensor:
        """v without its part in the basis."""
        return self._orthogonalised(v)

    def leading_ritz_values(self, steps: int) -> list[float]:
        """Eigenvalues of the leading block of T, ascending."""
        values: list[float] = torch.linalg.eigvalsh(self.tridiagonal[:steps, :steps]).tolist()
        return values

    @property
    def tridiagonal(self) -> Tensor:
        """(k, k) float64 on the CPU."""
        off = torch.tensor(self.betas[: max(self.steps - 1, 0)], dtype=torch.float64)
        T = torch.diag(torch.tensor(self.alphas, dtype=torch.float64))
        return T + torch.diag(off, 1) + torch.diag(off, -1)

    def ritz_pairs(self) -> tuple[Tensor, Tensor]:
        """Ritz values, ascending, and vectors (P, k) on the working device."""
        values, vectors = torch.linalg.eigh(self.tridiagonal)
        return values, self._combinations(vectors)

    def outer_ritz_vectors(self) -> Tensor:
        """Ritz vectors of the smallest and the largest Ritz value, (P, 2) on the working device."""
        return self._combinations(torch.linalg.eigh(self.tridiagonal)[1][:, [0, -1]])

    def _combinations(self, weights: Tensor) -> Tensor:
        """Q W for W (k, m), without a copy of Q."""
        parts = weights.to(self.device).split(ROWS)
        total = weights.new_zeros(self.parameters, weights.shape[1], device=self.device)
        for block, part in zip(self._blocks, parts, strict=True):
            total += block[: len(part)].T @ part
        return total

    def _random(self) -> Tensor:
        """A unit vector, uniform on the sphere of the complement of Q."""
        while True:
            v = torch.randn(self.parameters, generator=self._generator, dtype=torch.float64).to(self.device)
            v = self._orthogonalised(v)
            norm = float(torch.linalg.vector_norm(v))
            # In the last dimensions little of a random vector is left, and that little must not be rounding.
            if norm > 1e-8:
                v = self._orthogonalised(v / norm)
                unit: Tensor = v / torch.linalg.vector_norm(v)
                return unit

    def _orthogonalised(self, v: Tensor) -> Tensor:
        # Twice is enough (Kahan, Parlett); rows of a block that are not filled yet are 0.
        for _ in range(2):
            for Q in (*self._locked, *self._blocks):
                v = torch.addmv(v, Q.T, Q @ v, alpha=-1)
        return v
