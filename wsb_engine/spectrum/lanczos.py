"""The Lanczos recurrence with full reorthogonalisation, resumable, through breakdowns (mathematics.md, section 6).

After k steps H q_j = γ_j q_{j−1} + α_j q_j + β_j q_{j+1} + f_j. For every ‖f_j‖ there is a bound that comes from the
recurrence itself: what reorthogonalisation removed along older vectors, rounding, and the residual dropped at a
breakdown. T is tridiagonal: α on the diagonal, β below it, γ above it; γ_j differs from β_{j−1} by rounding.

All scalars belong to σH. The power of two σ brings the largest entry of the first product into [½, 1), so that norms
and dot products neither underflow nor overflow. ``scaling`` is σ.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

UNIT = 2.0**-53
"""Unit roundoff of float64, the dtype of the recurrence whatever the dtype of the products."""
BREAKDOWN = 4.0
"""β of at most this many units of ‖Hq‖ is rounding: the basis spans an invariant subspace."""
ROWS = 16
"""Basis vectors allocated at a time."""
COLUMNS = 1 << 12
"""Entries summed at a time in a dot product; bounds its rounding, whatever the library."""
PASSES = 6
"""Most passes of orthogonalisation; a vector that each of them halves is rounding."""
HOMOGENEITY_STEPS = (0, 3, 11)
"""Steps that repeat their product with a third of the vector, to measure how products round."""
LARGEST_EXPONENT = 1000


class Lanczos:
    """A Lanczos run that can be continued step by step.

    Args:
        product: v (P,) → H v (P,) in float64; must not write into v.
        parameters: P.
        device: Device of the vectors.
        seed: Seed of the start vector, which is uniform on the sphere.
        unit: Unit roundoff of the products' dtype.
        locked: (m, P) orthonormal rows; the run stays in their complement, with H compressed to it.
        homogeneity: True to repeat a few products with a third of the vector, for ``product_rounding``.
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
        self._locked = [] if locked is None else [locked]
        self.dimension = parameters - (0 if locked is None else len(locked))
        """Dimension of the space that the run can span."""
        self._product, self.device, self.unit = product, device, unit
        self._generator = torch.Generator().manual_seed(seed)
        self._blocks: list[Tensor] = []
        self._tested = HOMOGENEITY_STEPS if homogeneity else ()
        self.parameters = parameters
        self.scaling = 0.0
        """σ; 0 before the first step."""
        self.alphas: list[float] = []
        self.betas: list[float] = []
        """β_1..β_k: the last is the norm of the residual; 0 after a breakdown."""
        self.gammas: list[float] = []
        """γ_1..γ_k; the first is 0."""
        self.errors: list[float] = []
        """Upper bounds on ‖f_j‖ without the rounding of the product itself."""
        self.norms: list[float] = []
        """‖σH q_j‖."""
        self.first_breakdown: int | None = None
        """Number of steps after which the basis spanned an invariant subspace for the first time."""
        self.homogeneity = 0.0
        """ρ: largest ‖3 fl(H(q/3)) − fl(Hq)‖, relative to the largest ‖Hq‖ up to that step."""
        self.products, self.seconds = 0, 0.0
        """Number of products, and the seconds that they took."""
        self._gram_square = 0.0
        self._tridiagonal = torch.empty(0, 0, dtype=torch.float64)
        self._next: Tensor | None = None
        if self.dimension:
            self._accept(self._random())

    @property
    def steps(self) -> int:
        """k: number of basis vectors, without the next one."""
        return len(self.alphas)

    @property
    def exhausted(self) -> bool:
        """True if Q spans the whole space; T then has all eigenvalues of σH."""
        return self.steps == self.dimension

    @property
    def norm_estimate(self) -> float:
        """Largest ‖σHq_j‖ so far: a lower bound on ‖σH‖."""
        return max(self.norms, default=0.0)

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

    @property
    def factorisation_error(self) -> float:
        """Upper bound on ‖R‖_F of fl(σHQ) = QT + βqe_kᵀ + R with the symmetric T of α and β."""
        skew = [0.0, *(abs(gamma - beta) for gamma, beta in zip(self.gammas[1:], self.betas, strict=False))]
        return math.hypot(*(error + along for error, along in zip(self.errors, skew, strict=False)))

    def product_rounding(self, steps: int | None = None) -> list[float]:
        """Measure ν_j ≥ ‖fl(σHq_j) − σHq_j‖ for j up to ``steps``: max(32 u, 8 ρ) max_{i≤j} ‖σHq_i‖."""
        factor, largest, sizes = max(32 * self.unit, 8 * self.homogeneity), 0.0, []
        for norm in self.norms[:steps]:
            largest = max(largest, norm)
            sizes.append(factor * largest)
        return sizes

    def step(self) -> None:
        """Take one step: one Hessian-vector product, or two at the steps that test homogeneity.

        Raises:
            ValueError: if the basis is complete.
        """
        if self._next is None:
            raise ValueError("the Krylov basis spans the whole space")
        q, j = self._next, self.steps
        image = self.image(q)
        applied = _norm(image)
        largest = max(applied, self.norm_estimate)
        if j in self._tested and largest:
            self.homogeneity = max(self.homogeneity, _norm(3 * self.image(q / 3) - image) / largest)
        if j % ROWS == 0:
            self._blocks.append(q.new_zeros(min(ROWS, self.parameters), self.parameters))
        self._blocks[-1][j % ROWS] = q
        residual, coefficients, rounding = self._orthogonalised(image)
        beta = _norm(residual)
        # Coefficients along q_j and q_{j−1} belong to T, those along older and locked vectors to f_j.
        *older, alpha = coefficients.tolist()
        gamma = older.pop() if older and older[-1] > 0 and self.betas[j - 1] > 0 else 0.0
        error = 1.01 * math.hypot(*older) + rounding + 2 * UNIT * (abs(alpha) + gamma + beta)
        self.alphas.append(alpha)
        self.gammas.append(gamma)
        self.norms.append(applied)
        if beta > BREAKDOWN * UNIT * applied:
            self.betas.append(beta)
            self.errors.append(error)
            self._accept(residual / beta)
            return
        self.betas.append(0.0)
        self.errors.append(error + beta)
        self.first_breakdown = self.first_breakdown or self.steps
        self._next = None
        if not self.exhausted:
            self._accept(self._random())

    def image(self, v: Tensor) -> Tensor:
        """Compute σH v; the first call fixes σ."""
        started = time.perf_counter()
        image = self._product(v)
        self.seconds += time.perf_counter() - started
        self.products += 1
        if not self.scaling:
            largest = float(image.abs().max())
            exponent = -math.frexp(largest)[1] if largest else 0
            self.scaling = 2.0 ** max(min(exponent, LARGEST_EXPONENT), -LARGEST_EXPONENT)
        return image if self.scaling == 1 else image * self.scaling

    def complement(self, v: Tensor) -> Tensor:
        """Project v onto the orthogonal complement of the basis."""
        return self._orthogonalised(v)[0]

    def ritz_values(self) -> list[float]:
        """Compute the eigenvalues of T, ascending."""
        values: list[float] = torch.linalg.eigvalsh(self.tridiagonal).tolist()
        return values

    @property
    def tridiagonal(self) -> Tensor:
        """(k, k) float64 on the CPU: the symmetric T of α and β. Cached until the next step; do not write to it."""
        if len(self._tridiagonal) != self.steps:
            off = torch.tensor(self.betas[: max(self.steps - 1, 0)], dtype=torch.float64)
            T = torch.diag(torch.tensor(self.alphas, dtype=torch.float64))
            self._tridiagonal = T + torch.diag(off, 1) + torch.diag(off, -1)
        return self._tridiagonal

    def ritz_pairs(self) -> tuple[Tensor, Tensor]:
        """Compute the Ritz values of σH, ascending, and the Ritz vectors (P, k) on the working device."""
        values, vectors = torch.linalg.eigh(self.tridiagonal)
        return values, self.combinations(vectors)

    def combinations(self, weights: Tensor) -> Tensor:
        """Compute Q W for W (k, m), without a copy of Q."""
        parts = weights.to(self.device).split(ROWS)
        total = weights.new_zeros(self.parameters, weights.shape[1], device=self.device)
        for block, part in zip(self._blocks, parts, strict=True):
            total += block[: len(part)].T @ part
        return total

    def _accept(self, q: Tensor) -> None:
        """Make q the next basis vector, and add its departure from orthonormality to ‖QᵀQ − I‖_F²."""
        self._next = q
        if self._blocks:
            self._gram_square += 2 * float(torch.cat([_dots(Q, q) for Q in self._blocks]).square().sum())
        self._gram_square += (float(_dots(q.unsqueeze(0), q)) - 1) ** 2

    def _random(self) -> Tensor:
        """Draw a unit vector uniformly from the sphere in the complement of Q."""
        while True:
            v = torch.randn(self.parameters, generator=self._generator, dtype=torch.float64).to(self.device)
            v = self._orthogonalised(v)[0]
            norm = _norm(v)
            # If few dimensions remain, little of a random vector does; that little must not be rounding.
            if norm > 1e-8:
                v = self._orthogonalised(v / norm)[0]
                unit: Tensor = v / torch.linalg.vector_norm(v)
                return unit

    def _orthogonalised(self, v: Tensor) -> tuple[Tensor, Tensor, float]:
        """Orthogonalise v against locked and basis vectors.

        Subtracting Σ c_i q_i of a block of m rows rounds by at most u‖v‖ + (m + 2) u Σ |c_i|.

        Returns:
            The rest of v, the coefficients removed along the basis, and a bound on the rounding.
        """
        taken = torch.zeros(len(self._blocks) * min(ROWS, self.parameters), dtype=torch.float64, device=v.device)
        rounding, norm = 0.0, _norm(v)
        for turn in range(PASSES):
            before, removed = norm, []
            for Q in [*self._locked, *self._blocks]:
                # Rows not filled yet are 0.
                removed.append(Q @ v)
                v = torch.addmv(v, Q.T, removed[-1], alpha=-1)
            norm = _norm(v)
            if removed:
                along = torch.cat(removed)
                taken += along[len(along) - len(taken) :]
                rounding += (max(map(len, removed)) + 2) * UNIT * float(along.abs().sum())
            rounding += (len(removed) + 2) * UNIT * before
            # Twice is enough (Kahan, Parlett), unless the first pass left next to nothing.
            if turn and norm >= before / 2:
                return v, taken[: self.steps + 1].cpu(), rounding
        return torch.zeros_like(v), taken[: self.steps + 1].cpu(), rounding + norm


def _norm(v: Tensor) -> float:
    return float(torch.linalg.vector_norm(v))


def _dots(Q: Tensor, v: Tensor) -> Tensor:
    """Compute Q v for rows Q (m, P), summed in pieces of ``COLUMNS`` entries."""
    if len(v) <= COLUMNS:
        return Q @ v
    total = Q.new_zeros(len(Q))
    for rows, piece in zip(Q.split(COLUMNS, dim=1), v.split(COLUMNS), strict=True):
        total += rows @ piece
    return total
