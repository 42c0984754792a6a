"""The Lanczos recurrence with full reorthogonalisation, resumable, through breakdowns (mathematics.md, section 6).

After k steps H q_j = γ_j q_{j−1} + α_j q_j + β_j q_{j+1} + f_j, and the run keeps a bound on every ‖f_j‖ that comes
from the recurrence itself: what reorthogonalisation removed along older vectors, rounding, and the residual dropped
at a breakdown. T is tridiagonal: α on the diagonal, β below it, γ above it; γ_j differs from β_{j−1} by rounding.

All scalars are those of σH, where the power of two σ brings the largest entry of the first product into [½, 1): norms
and dot products then neither underflow nor overflow. ``scaling`` is σ.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

UNIT = 2.0**-53
"""Unit roundoff of float64, in which the recurrence runs whatever the dtype of the products."""
BREAKDOWN = 4.0
"""β of at most this many units of ‖Hq‖ is rounding: the invariant subspace of the start vector is exhausted."""
ROWS = 16
"""Vectors of the basis that are allocated at a time."""
COLUMNS = 1 << 12
"""Entries of a dot product that are summed before the partial sums are: bounds its rounding whatever the library."""
PASSES = 6
"""Orthogonalisation passes at most; what each of them halves again is rounding."""
HOMOGENEITY_STEPS = (0, 3, 11)
"""Steps whose product is repeated at a third of the vector, which shows the rounding of products."""
LARGEST_EXPONENT = 1000


class Lanczos:
    """A Krylov run that can be continued step by step.

    Args:
        product: v (P,) → H v (P,) in float64; must not write into v.
        parameters: P.
        device: Device of the vectors.
        seed: Seed of the start vector, which is uniform on the sphere.
        unit: Unit roundoff of the products' dtype.
        locked: (m, P) orthonormal rows; the run stays in their complement and sees H compressed to it.
        homogeneity: True to repeat a few products at a third of the vector, for ``product_rounding``.
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
        """Number of steps after which the space of the start vector was exhausted."""
        self.homogeneity = 0.0
        """Largest ‖3 fl(H(q/3)) − fl(Hq)‖ seen, relative to the largest ‖Hq‖ up to it."""
        self.products, self.seconds = 0, 0.0
        """Products made, and the wall-clock time that they took."""
        self._gram_square = 0.0
        self._tridiagonal = torch.empty(0, 0, dtype=torch.float64)
        self._next: Tensor | None = None
        if self.dimension:
            self._accept(self._random())

    @property
    def steps(self) -> int:
        return len(self.alphas)

    @property
    def exhausted(self) -> bool:
        """True if Q spans everything: then T has all eigenvalues of H."""
        return self.steps == self.dimension

    @property
    def scale(self) -> float:
        """Largest ‖σH q‖ seen: a lower bound on ‖σH‖."""
        return max(self.norms, default=0.0)

    @property
    def basis(self) -> Tensor:
        """(k, P): the basis, a vector a row; a copy."""
        return torch.cat(self._blocks)[: self.steps]

    def orthogonality(self, *, proven: bool) -> float:
        """‖QᵀQ − I‖_F over the k + 1 vectors so far.

        Args:
            proven: True for an upper bound; False for the value as computed and its usual rounding.
        """
        terms = min(self.parameters, COLUMNS) + -(-self.parameters // COLUMNS) + 1
        return math.sqrt(self._gram_square) + (self.steps + 1) * UNIT * (terms if proven else 8)

    @property
    def factorisation_error(self) -> float:
        """Upper bound on ‖R‖_F of fl(σHQ) = QT + βqe_kᵀ + R with the symmetric T of α and β."""
        skew = [0.0, *(abs(gamma - beta) for gamma, beta in zip(self.gammas[1:], self.betas, strict=False))]
        return math.hypot(*(error + along for error, along in zip(self.errors, skew, strict=False)))

    def product_rounding(self, steps: int | None = None) -> list[float]:
        """max(32 u, 8 ρ) max_{i≤j} ‖σHq_i‖ for j up to ``steps``: measured ν_j ≥ ‖fl(σHq_j) − σHq_j‖."""
        factor, largest, sizes = max(32 * self.unit, 8 * self.homogeneity), 0.0, []
        for norm in self.norms[:steps]:
            largest = max(largest, norm)
            sizes.append(factor * largest)
        return sizes

    def step(self) -> None:
        """Take one step: one Hessian-vector product, and a second one at the steps that test homogeneity.

        Raises:
            ValueError: if the basis is complete.
        """
        if self._next is None:
            raise ValueError("the Krylov basis spans the whole space")
        q, j = self._next, self.steps
        image = self.image(q)
        applied = _norm(image)
        largest = max(applied, self.scale)
        if j in self._tested and largest:
            self.homogeneity = max(self.homogeneity, _norm(3 * self.image(q / 3) - image) / largest)
        if j % ROWS == 0:
            self._blocks.append(q.new_zeros(min(ROWS, self.parameters), self.parameters))
        self._blocks[-1][j % ROWS] = q
        residual, coefficients, rounding = self._orthogonalised(image)
        beta = _norm(residual)
        # Along q_j and q_{j−1} the coefficients belong to T, along older and locked vectors to f_j.
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
        """σH v; the first call fixes σ."""
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
        """v without its part in the basis."""
        return self._orthogonalised(v)[0]

    def leading_ritz_values(self, steps: int) -> list[float]:
        """Eigenvalues of the leading block of T, ascending."""
        values: list[float] = torch.linalg.eigvalsh(self.tridiagonal[:steps, :steps]).tolist()
        return values

    @property
    def tridiagonal(self) -> Tensor:
        """(k, k) float64 on the CPU: the symmetric T of α and β; kept until the next step, not to be written to."""
        if len(self._tridiagonal) != self.steps:
            off = torch.tensor(self.betas[: max(self.steps - 1, 0)], dtype=torch.float64)
            T = torch.diag(torch.tensor(self.alphas, dtype=torch.float64))
            self._tridiagonal = T + torch.diag(off, 1) + torch.diag(off, -1)
        return self._tridiagonal

    def ritz_pairs(self) -> tuple[Tensor, Tensor]:
        """Ritz values of σH, ascending, and vectors (P, k) on the working device."""
        values, vectors = torch.linalg.eigh(self.tridiagonal)
        return values, self.combinations(vectors)

    def combinations(self, weights: Tensor) -> Tensor:
        """Q W for W (k, m), without a copy of Q."""
        parts = weights.to(self.device).split(ROWS)
        total = weights.new_zeros(self.parameters, weights.shape[1], device=self.device)
        for block, part in zip(self._blocks, parts, strict=True):
            total += block[: len(part)].T @ part
        return total

    def _accept(self, q: Tensor) -> None:
        """Make q the next vector, and account for how far it is from orthonormal."""
        self._next = q
        if self._blocks:
            self._gram_square += 2 * float(torch.cat([_dots(Q, q) for Q in self._blocks]).square().sum())
        self._gram_square += (float(_dots(q.unsqueeze(0), q)) - 1) ** 2

    def _random(self) -> Tensor:
        """A unit vector, uniform on the sphere of the complement of Q."""
        while True:
            v = torch.randn(self.parameters, generator=self._generator, dtype=torch.float64).to(self.device)
            v = self._orthogonalised(v)[0]
            norm = _norm(v)
            # In the last dimensions little of a random vector is left, and that little must not be rounding.
            if norm > 1e-8:
                v = self._orthogonalised(v / norm)[0]
                unit: Tensor = v / torch.linalg.vector_norm(v)
                return unit

    def _orthogonalised(self, v: Tensor) -> tuple[Tensor, Tensor, float]:
        """v less its part in the basis, the coefficients taken out along the basis, and a bound on the rounding.

        Subtracting Σ c_i q_i of a block of m rows rounds by at most u‖v‖ + (m + 2) u Σ |c_i|.
        """
        taken = torch.zeros(len(self._blocks) * min(ROWS, self.parameters), dtype=torch.float64, device=v.device)
        rounding, norm = 0.0, _norm(v)
        for turn in range(PASSES):
            before, removed = norm, []
            for Q in [*self._locked, *self._blocks]:
                # Rows of a block that are not filled yet are 0.
                removed.append(Q @ v)
                v = torch.addmv(v, Q.T, removed[-1], alpha=-1)
            norm = _norm(v)
            if removed:
                along = torch.cat(removed)
                taken += along[len(along) - len(taken) :]
                rounding += (max(map(len, removed)) + 2) * UNIT * float(along.abs().sum())
            rounding += (len(removed) + 2) * UNIT * before
            # Twice is enough (Kahan, Parlett), unless next to nothing was left the first time.
            if turn and norm >= before / 2:
                return v, taken[: self.steps + 1].cpu(), rounding
        return torch.zeros_like(v), taken[: self.steps + 1].cpu(), rounding + norm


def _norm(v: Tensor) -> float:
    return float(torch.linalg.vector_norm(v))


def _dots(Q: Tensor, v: Tensor) -> Tensor:
    """Q v for rows Q (m, P), summed in pieces of ``COLUMNS`` entries."""
    if len(v) <= COLUMNS:
        return Q @ v
    total = Q.new_zeros(len(Q))
    for rows, piece in zip(Q.split(COLUMNS, dim=1), v.split(COLUMNS), strict=True):
        total += rows @ piece
    return total
