"""Enclosures on matrices with prescribed spectra: what is certified must hold, however awkward the matrix."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import special, stats

from wsb_engine.bounds.enclosure import Enclosures, ExactMoments, enclose, evaluate
from wsb_engine.bounds.lanczos_polynomial import largest_eigenvalue_bound, overlap_quantile
from wsb_engine.spectrum.lanczos import Lanczos

UNIT = float(np.finfo(np.float64).eps)


def rotated(eigenvalues: np.ndarray, seed: int) -> torch.Tensor:
    """A symmetric matrix with these eigenvalues and random eigenvectors."""
    n = len(eigenvalues)
    Q = stats.ortho_group.rvs(n, random_state=seed) if n > 1 else np.ones((1, 1))
    A = (Q * eigenvalues) @ Q.T
    return torch.from_numpy((A + A.T) / 2)


def krylov(A: torch.Tensor, seed: int = 0) -> Lanczos:
    return Lanczos(lambda v: A @ v, len(A), torch.device("cpu"), seed, UNIT)


def moments_of(A: torch.Tensor) -> ExactMoments:
    return ExactMoments(float(A.trace()), float(A.square().sum()))


def run(A: torch.Tensor, *, exact: bool, seed: int = 0, delta: float = 1e-9, products: int = 300) -> Enclosures:
    return enclose(
        krylov(A, seed),
        moments=moments_of(A) if exact else None,
        failure_probability=delta,
        relative_gap=1e-9,
        max_products=products,
    )


def holds(found: Enclosures, A: torch.Tensor) -> bool:
    values = torch.linalg.eigvalsh(A).tolist()
    # The dense solver's own error
    tolerance = 50 * UNIT * max(abs(values[0]), abs(values[-1]))
    top, bottom = found.lambda_max, found.lambda_min
    return (
        top.lower - tolerance <= values[-1] <= top.upper + tolerance
        and bottom.lower - tolerance <= values[0] <= bottom.upper + tolerance
    )


spectra = st.one_of(
    st.lists(st.floats(-100, 100), min_size=1, max_size=24),
    st.lists(st.sampled_from([-2.0, -1.0, 0.0, 1.0, 1.0 + 1e-9, 3.0]), min_size=1, max_size=24),
    st.lists(st.floats(-1, 1), min_size=1, max_size=12).map(lambda values: [10.0**k * v for k, v in enumerate(values)]),
).map(lambda values: np.array([v if abs(v) > 1e-100 else 0.0 for v in values]))
# Squares of smaller numbers underflow: to any moment-based bound they are 0.


@settings(deadline=None, max_examples=150)
@given(spectra, st.integers(0, 2**31 - 1), st.integers(1, 30))
def test_a_deterministic_enclosure_never_misses(eigenvalues: np.ndarray, seed: int, products: int) -> None:
    A = rotated(eigenvalues, seed % 1000)
    found = run(A, exact=True, seed=seed, products=products)
    assert holds(found, A)


@settings(deadline=None, max_examples=100)
@given(spectra, st.integers(0, 2**31 - 1))
def test_everything_closes_once_the_space_is_spanned(eigenvalues: np.ndarray, seed: int) -> None:
    A = rotated(eigenvalues, seed % 1000)
    found = run(A, exact=False, seed=seed)
    assert holds(found, A)
    scale = float(np.abs(eigenvalues).max())
    assert found.lambda_max.upper - found.lambda_max.lower <= 1e-8 * scale


@pytest.mark.parametrize(
    "eigenvalues",
    [
        [3.0],
        [0.0],
        [0.0] * 40,
        [2.5] * 40,
        [-2.5] * 40,
        [5.0] * 20 + [1.0] * 20,
        [1.0] + [0.0] * 39,
        [-1.0] + [0.0] * 39,
    ],
    ids=["order 1", "order 1, zero", "zero", "cI", "-cI", "two values", "rank one", "negative rank one"],
)
@pytest.mark.parametrize("exact", [True, False])
def test_degenerate_matrices_are_enclosed_tightly(eigenvalues: list[float], exact: bool) -> None:
    A = rotated(np.array(eigenvalues), 1)
    found = run(A, exact=exact)
    assert holds(found, A)
    for end in (found.lambda_max, found.lambda_min):
        assert end.upper - end.lower <= 1e-6 * max(abs(v) for v in eigenvalues)
        assert math.isfinite(end.relative_gap)


def test_a_start_orthogonal_to_the_top_is_caught_by_the_moments() -> None:
    eigenvalues = np.array([10.0, *np.linspace(-1, 1, 29)])
    A = rotated(eigenvalues, 2)
    top = torch.linalg.eigh(A)[1][:, -1]
    blind = krylov(A)
    blind._next = blind._next - top * (top @ blind._next)
    blind._next = blind._next / torch.linalg.vector_norm(blind._next)
    for _ in range(6):
        blind.step()
    found = evaluate(blind, moments=moments_of(A), failure_probability=0.5, relative_gap=1e-6)
    # The Ritz values know nothing of 10; with the moments the interval still has to hold it when it is deterministic.
    assert found.lambda_max.lower < 1.5
    deterministic = found.lambda_max.kind == "deterministic"
    assert not deterministic or found.lambda_max.upper >= 10.0 - 1e-12


def test_probabilistic_bounds_fail_no_more_often_than_they_say() -> None:
    runs, delta, n = 2000, 0.05, 60
    rng = np.random.default_rng(5)
    eigenvalues = np.concatenate([[1.0], rng.uniform(-0.9, 0.9, n - 1)])
    A = torch.diag(torch.from_numpy(eigenvalues))
    misses = 0
    for seed in range(runs):
        short = krylov(A, seed)
        for _ in range(6):
            short.step()
        bound = largest_eigenvalue_bound(short.leading_ritz_values(6), short.betas, n, delta)
        misses += bound < 1.0
    assert misses / runs <= delta + 3 * math.sqrt(delta * (1 - delta) / runs)


@given(
    st.lists(st.tuples(st.floats(-1, 1), st.floats(1e-3, 2)), min_size=1, max_size=40),
    st.integers(2, 10**8),
    st.floats(1e-12, 0.5),
    st.integers(-200, 200),
)
@example([(0.5, 1.0), (0.5, 1.0), (math.nextafter(0.5, 0), 1.0)], 10**6, 1e-6, 0)
def test_the_probabilistic_bound_is_where_the_lanczos_polynomial_reaches_its_limit(
    steps: list[tuple[float, float]], n: int, delta: float, magnitude: int
) -> None:
    ritz, betas = ([value * 10.0**magnitude for value in column] for column in zip(*steps, strict=True))
    bound, top = largest_eigenvalue_bound(ritz, betas, n, delta), max(ritz)

    def excess(tau: Decimal) -> Decimal:
        """log |c p(τ)|."""
        factors = [tau - Decimal(theta) for theta in ritz] + [Decimal(overlap_quantile(n, delta))]
        return sum((factor.ln() for factor in factors), Decimal()) - sum(Decimal(beta).ln() for beta in betas)

    with localcontext(prec=60):
        assert bound > top
        assert excess(Decimal(bound)) >= -1e-11
        inside = Decimal(top) + (Decimal(bound) - Decimal(top)) * Decimal("0.99999999") - Decimal(2 * math.ulp(bound))
        assert inside <= top or excess(inside) < 0


def test_a_probabilistic_bound_beyond_every_number_is_infinite() -> None:
    assert largest_eigenvalue_bound([0.0, 1e308], [1e308, 1e308], 100, 1e-6) == math.inf
    assert largest_eigenvalue_bound([0.0, 1.0], [math.inf, 1.0], 100, 1e-6) == math.inf


@given(st.integers(1, 10**8), st.floats(1e-12, 0.5))
@example(10**8, 1e-12)
@example(3, 0.5)
def test_the_overlap_quantile_is_never_above_the_exact_one(n: int, delta: float) -> None:
    c = overlap_quantile(n, delta)
    if n == 1:
        assert c == 1.0
        return
    # P(|u·v| < c) for u·v with (u·v)² ~ Beta(1/2, (n−1)/2)
    assert special.betainc(0.5, (n - 1) / 2, c * c) <= delta * (1 + 1e-7)
    assert special.betainc(0.5, (n - 1) / 2, c * c) >= delta / 2


def test_an_untrained_spectrum_closes_in_few_products() -> None:
    rng = np.random.default_rng(0)
    eigenvalues = np.concatenate([[8.0, 5.0, 3.0], rng.normal(size=297) * 0.1])
    A = rotated(eigenvalues, 3)
    found = enclose(krylov(A), moments=moments_of(A), failure_probability=1e-9, relative_gap=1e-6, max_products=12)
    assert holds(found, A)
    assert found.lambda_max.kind == "deterministic"
    assert found.lambda_max.relative_gap <= 1e-6
    assert found.products == 12


def test_one_end_takes_fewer_products_than_both_and_the_other_still_holds() -> None:
    rng = np.random.default_rng(0)
    A = rotated(np.concatenate([[8.0, 5.0, 3.0], rng.normal(size=297) * 0.1]), 3)

    def found(*, both: bool) -> Enclosures:
        return enclose(
            krylov(A), moments=None, failure_probability=1e-9, relative_gap=1e-6, max_products=300, both=both
        )

    one, two = found(both=False), found(both=True)
    assert one.products < two.products / 2
    assert holds(one, A)
    assert one.lambda_max.relative_gap <= 1e-6 < one.lambda_min.relative_gap
    assert two.lambda_min.relative_gap <= 1e-6
