"""What every Krylov run records of H q_j = γ_j q_{j−1} + α_j q_j + β_j q_{j+1} + f_j (mathematics.md, section 6).

T is tridiagonal: α on the diagonal, β below it, γ above it. All scalars belong to σH. The power of two σ brings the
largest entry of the first product into [½, 1), so that norms and dot products neither underflow nor overflow.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from wsb_engine.random_vectors import gaussian

UNIT = 2.0**-53
"""Unit roundoff of float64, the dtype of sums and scalars whatever the dtype of the vectors."""
BREAKDOWN = 4.0
"""β of at most this many units of ‖Hq‖ is rounding: the vectors span an invariant subspace."""
TILE = 1 << 20
"""Entries of a vector that are converted to float64 or summed at a time."""
HOMOGENEITY_STEPS = (0, 3, 11)
"""Steps that repeat their product with a third of the vector, to measure how products round."""
LARGEST_EXPONENT = 1000


class Run(ABC):
    """A Krylov run that can be continued step by step.

    Args:
        product: v (P,) → H v (P,) in float64; must not write into v.
        parameters: P.
        device: Device of the vectors.
        seed: Seed of the start vector, which is uniform on the sphere.
        unit: Unit roundoff of the products' dtype, in which vectors are kept.
        homogeneity: True to repeat a few products with a third of the vector, for ``product_rounding``.
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
    ) -> None:
        self._product, self.parameters, self.device, self.seed, self.unit = product, parameters, device, seed, unit
        self.dtype = torch.float64 if unit <= UNIT else torch.float32
        """Dtype of the vectors; the start vector is in float64."""
        self.storage_error = unit if self.dtype == torch.float32 else 0.0
        """Relative error of storing a vector."""
        self._tested = HOMOGENEITY_STEPS if homogeneity else ()
        self.scaling = 0.0
        """σ; 0 before the first step."""
        self.alphas: list[float] = []
        self.betas: list[float] = []
        """β_1..β_k: the last is the norm of the residual."""
        self.gammas: list[float] = []
        """γ_1..γ_k; the first is 0."""
        self.errors: list[float] = []
        """Upper bounds on ‖f_j‖ without the rounding of the product itself."""
        self.norms: list[float] = []
        """‖σH q_j‖."""
        self.first_breakdown: int | None = None
        """Number of steps after which the vectors spanned an invariant subspace for the first time."""
        self.homogeneity = 0.0
        """ρ: largest ‖3 fl(H(q/3)) − fl(Hq)‖, relative to the largest ‖Hq‖ up to that step."""
        self.products, self.seconds = 0, 0.0
        """Number of products, and the seconds that they took."""
        self._tridiagonal = torch.empty(0, 0, dtype=torch.float64)

    @property
    def steps(self) -> int:
        """k: number of vectors, without the next one."""
        return len(self.alphas)

    @property
    @abstractmethod
    def ended(self) -> bool:
        """True if there is no further step."""

    @property
    def repeated(self) -> int:
        """Number of products that ``combinations`` takes."""
        return 0

    @property
    def norm_estimate(self) -> float:
        """Largest ‖σHq_j‖ so far: a lower bound on ‖σH‖."""
        return max(self.norms, default=0.0)

    @property
    def factorisation_error(self) -> float:
        """Upper bound on ‖R‖_F of fl(σHQ) = QT + βqe_kᵀ + R with the symmetric T of ``tridiagonal``."""
        skew = [0.0, *(abs(gamma - beta) for gamma, beta in zip(self.gammas[1:], self.betas, strict=False))]
        return math.hypot(*(error + along for error, along in zip(self.errors, skew, strict=False)))

    def product_rounding(self, steps: int | None = None) -> list[float]:
        """Measure ν_j ≥ ‖fl(σHq_j) − σHq_j‖ for j up to ``steps``: max(32 u, 8 ρ) max_{i≤j} ‖σHq_i‖."""
        factor, largest, sizes = max(32 * self.unit, 8 * self.homogeneity), 0.0, []
        for norm in self.norms[:steps]:
            largest = max(largest, norm)
            sizes.append(factor * largest)
        return sizes

    @abstractmethod
    def step(self) -> None:
        """Take one step: one Hessian-vector product, or two at the steps that test homogeneity.

        Raises:
            ValueError: if the run has ended.
        """

    @abstractmethod
    def combinations(self, weights: Tensor) -> Tensor:
        """Compute Q W, (P, m), for W (k, m)."""

    def image(self, v: Tensor) -> Tensor:
        """Compute σH v, which may be written into; the first call fixes σ."""
        started = time.perf_counter()
        image = self._product(v)
        self.seconds += time.perf_counter() - started
        self.products += 1
        if image.data_ptr() == v.data_ptr():
            image = image.clone()
        if not self.scaling:
            largest = float(torch.linalg.vector_norm(image, ord=math.inf))
            exponent = -math.frexp(largest)[1] if largest else 0
            self.scaling = 2.0 ** max(min(exponent, LARGEST_EXPONENT), -LARGEST_EXPONENT)
        return image if self.scaling == 1 else image.mul_(self.scaling)

    def ritz_values(self) -> list[float]:
        """Compute the eigenvalues of T, ascending."""
        values: list[float] = torch.linalg.eigvalsh(self.tridiagonal).tolist()
        return values

    @property
    def tridiagonal(self) -> Tensor:
        """(k, k) float64 on the CPU: T, made symmetric. Cached until the next step; do not write to it."""
        if len(self._tridiagonal) != self.steps:
            off = torch.tensor(self._off_diagonal(), dtype=torch.float64)
            T = torch.diag(torch.tensor(self.alphas, dtype=torch.float64))
            self._tridiagonal = T + torch.diag(off, 1) + torch.diag(off, -1)
        return self._tridiagonal

    @abstractmethod
    def _off_diagonal(self) -> list[float]:
        """Return the k − 1 entries beside the diagonal of the symmetric T."""

    def measure_homogeneity(self, q: Tensor, image: Tensor, largest: float) -> None:
        """Repeat the product of this step with q/3, if it is one of the tested steps."""
        if self.steps in self._tested and largest:
            again = self.image(q.to(self.dtype) / 3).mul_(3).sub_(image)
            self.homogeneity = max(self.homogeneity, norm(again) / largest)


def on_sphere(count: int, seed: int, stream: int, device: torch.device) -> Tensor:
    """Draw a unit vector uniformly, (count,) float64, the same on every device; arguments as for ``gaussian``."""
    v = gaussian(count, seed, stream, device)
    return v.div_(math.sqrt(dot(v, v)))


def norm(v: Tensor) -> float:
    """Compute ‖v‖ of a float64 vector."""
    return float(torch.linalg.vector_norm(v))


def dot(x: Tensor, y: Tensor) -> float:
    """Compute x·y in float64 by pairwise summation, in tiles."""
    pieces = zip(x.split(TILE), y.split(TILE), strict=True)
    return float(_pairwise(torch.stack([_pairwise(a.double() * b.double()) for a, b in pieces])))


def _pairwise(terms: Tensor) -> Tensor:
    while len(terms) > 1:
        half = (len(terms) + 1) // 2
        first, second = terms[:half], terms[half:]
        terms = torch.cat([first[: len(second)] + second, first[len(second) :]])
    return terms[0]
