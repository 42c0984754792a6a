"""Enclosures on matrices with prescribed spectra: what is certified must hold, however awkward the matrix."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import special, stats

from wsb_engine.bounds.certificates import CertifiedNorm, Enclosures, ExactMoments, Premises
from wsb_engine.bounds.lanczos_polynomial import Recurrence, bound_exceeds, largest_eigenvalue_bound, overlap_quantile
from wsb_engine.bounds.rounding import Rounding
from wsb_engine.spectrum.confirmation import RitzResidual, confirm, outer_pairs
from wsb_engine.spectrum.enclosure import Enclosing, enclose, finish
from wsb_engine.spectrum.lanczos import Lanczos

UNIT = 2.0**-53
ROUNDING = Rounding("measured", 0.0, relative_square_error=1e3 * UNIT)


def rotated(eigenvalues: np.ndarray, seed: int) -> torch.Tensor:
    """A symmetric matrix with these eigenvalues and random eigenvectors."""
    n = len(eigenvalues)
    Q = stats.ortho_group.rvs(n, random_state=seed) if n > 1 else np.ones((1, 1))
    A = (Q * eigenvalues) @ Q.T
    return torch.from_numpy((A + A.T) / 2)


def krylov(A: torch.Tensor, seed: int = 0, unit: float = UNIT) -> Lanczos:
    return Lanczos(lambda v: A @ v, len(A), torch.device("cpu"), seed, unit, homogeneity=True)


def moments_of(A: torch.Tensor) -> ExactMoments:
    return ExactMoments(float(A.trace()), float(A.square().sum()))


def whole(
    lanczos: Lanczos,
    moments: ExactMoments | None,
    *,
    delta: float = 1e-9,
    gap: float = 1e-9,
    products: int = 300,
    both: bool = True,
    rounding: Rounding = ROUNDING,
) -> tuple[Enclosures, RitzResidual]:
    """The enclosure of a run, confirmed, in the units of H."""
    lanczos.step()
    premises = Premises(rounding, moments, delta, gap, both)
    enclosing = Enclosing(lanczos, premises.scaled(lanczos.scaling))
    found = enclose(enclosing, max_products=products)
    enclosing, found = finish(enclosing, found, enclosing.premises.rounding)
    found, residual = confirm(enclosing, found, outer_pairs(lanczos))
    ends = {name: getattr(found, name).scaled(1 / lanczos.scaling) for name in ("lambda_max", "lambda_min")}
    return replace(found, **ends), residual


def enclosed(A: torch.Tensor, *, exact: bool, seed: int = 0, delta: float = 1e-9, products: int = 300) -> Enclosures:
    return whole(krylov(A, seed), moments_of(A) if exact else None, delta=delta, products=products)[0]


def holds(found: Enclosures, A: torch.Tensor) -> bool:
    values = torch.linalg.eigvalsh(A).tolist()
    # The dense solver's own error
    tolerance = 100 * UNIT * max(abs(values[0]), abs(values[-1]))
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


def tried(examples: int, check: Callable[..., None], *given_to_it: st.SearchStrategy[Any]) -> Callable[..., None]:
    """A property as a test on so many examples."""
    return settings(deadline=None, max_examples=examples)(given(*given_to_it)(check))


def never_misses(eigenvalues: np.ndarray, seed: int, products: int) -> None:
    A = rotated(eigenvalues, seed % 1000)
    found = enclosed(A, exact=True, seed=seed, products=products)
    assert holds(found, A)


RUNS = spectra, st.integers(0, 2**31 - 1), st.integers(1, 30)
test_a_deterministic_enclosure_never_misses = tried(50, never_misses, *RUNS)
test_a_deterministic_enclosure_never_misses_on_more_examples = pytest.mark.slow(tried(150, never_misses, *RUNS))


def closes(eigenvalues: np.ndarray, seed: int) -> None:
    A = rotated(eigenvalues, seed % 1000)
    found = enclosed(A, exact=False, seed=seed)
    assert holds(found, A)
    scale = float(np.abs(eigenvalues).max())
    assert found.lambda_max.upper - found.lambda_max.lower <= 1e-8 * scale


test_everything_closes_once_the_space_is_spanned = tried(25, closes, *RUNS[:2])
test_everything_closes_once_the_space_is_spanned_on_more_examples = pytest.mark.slow(tried(100, closes, *RUNS[:2]))


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
    found = enclosed(A, exact=exact)
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
    found, _ = whole(blind, moments_of(A), delta=0.5, gap=1e-6, products=7)
    # The Ritz values know nothing of 10; with the moments the interval still has to hold it when it is deterministic.
    assert found.lambda_max.lower < 1.5
    deterministic = found.lambda_max.kind == "deterministic"
    assert not deterministic or found.lambda_max.upper >= 10.0 - 1e-12


def h_falls_to_the_overlap(
    steps: list[tuple[float, float, float, float]], n: int, delta: float, magnitude: int
) -> None:
    """h evaluated in 80 digits through (τ − T)^{-1} e_1 by another route: Gaussian elimination of the whole matrix."""
    scale = 10.0**magnitude
    alphas, betas, shares, errors = (list(column) for column in zip(*steps, strict=True))
    gammas = [0.0, *(beta * share for beta, share in zip(betas, shares, strict=False))][: len(betas)]
    recurrence = Recurrence(*([value * scale for value in column] for column in (alphas, betas, gammas, errors)))
    bound = largest_eigenvalue_bound(recurrence, n, delta)
    if not math.isfinite(bound):
        return
    assert not bound_exceeds(recurrence, n, delta, bound + 0.01 * abs(bound))
    with mpmath.workdps(80):
        k = len(alphas)
        T = mpmath.zeros(k)
        for j in range(k):
            T[j, j] = mpmath.mpf(recurrence.alphas[j])
            if j:
                T[j, j - 1], T[j - 1, j] = mpmath.mpf(recurrence.betas[j - 1]), mpmath.mpf(recurrence.gammas[j])
        first = mpmath.zeros(k, 1)
        first[0] = 1

        def h(tau: mpmath.mpf) -> mpmath.mpf:
            g = mpmath.lu_solve(tau * mpmath.eye(k) - T, first)
            assert min(g) > 0  # τ is above the spectrum of T
            return recurrence.betas[-1] * g[k - 1] + sum(e * x for e, x in zip(recurrence.epsilons, g, strict=True))

        c = mpmath.mpf(overlap_quantile(n, delta))
        size = max(map(abs, (*recurrence.alphas, *recurrence.betas, *recurrence.gammas)))
        assert h(mpmath.mpf(bound)) <= c
        # No wider than needed: a little inside, h is above c or τ below the spectrum of T.
        symmetric = mpmath.diag([T[j, j] for j in range(k)])
        for j in range(1, k):
            symmetric[j, j - 1] = symmetric[j - 1, j] = mpmath.sqrt(T[j, j - 1] * T[j - 1, j])
        theta = max(mpmath.eigsy(symmetric, eigvals_only=True))
        inside = theta + (mpmath.mpf(bound) - theta) * mpmath.mpf("0.999") - 300 * UNIT * size * k
        assert inside <= theta or h(inside) > c * (1 - mpmath.mpf("1e-5")) - 1e3 * k * UNIT


RECURRENCES = (
    st.lists(
        st.tuples(st.floats(-1, 1), st.floats(1e-3, 2), st.floats(0.5, 2), st.floats(0, 1e-3)), min_size=1, max_size=20
    ),
    st.integers(2, 10**6),
    st.floats(1e-12, 0.5),
    st.integers(-200, 200),
)
test_the_bound_is_where_h_falls_to_the_overlap = tried(40, h_falls_to_the_overlap, *RECURRENCES)
test_the_bound_is_where_h_falls_on_more_examples = pytest.mark.slow(tried(200, h_falls_to_the_overlap, *RECURRENCES))


def test_a_bound_that_rounding_hides_is_infinite() -> None:
    assert largest_eigenvalue_bound(Recurrence([1.0], [0.0], [0.0], [math.inf]), 100, 1e-6) == math.inf
    assert largest_eigenvalue_bound(Recurrence([1.0], [math.inf], [0.0], [0.0]), 100, 1e-6) == math.inf
    # The start vector as stored can't overlap by less than its own rounding.
    assert largest_eigenvalue_bound(Recurrence([1.0], [0.0], [0.0], [0.0]), 100, 1e-20) == math.inf


@pytest.mark.parametrize("exponent", [-900, -500, 0, 500, 900])
def test_the_bound_scales_with_powers_of_two(exponent: int) -> None:
    plain = Recurrence([1.0, 0.5], [0.25, 0.125], [0.0, 0.25], [1e-12, 1e-12])
    scaled = Recurrence(*([math.ldexp(value, exponent) for value in column] for column in vars(plain).values()))
    bound = largest_eigenvalue_bound(plain, 50, 1e-3)
    assert largest_eigenvalue_bound(scaled, 50, 1e-3) == pytest.approx(math.ldexp(bound, exponent), rel=1e-15)


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
    found, _ = whole(krylov(A), moments_of(A), gap=1e-6, products=12)
    assert holds(found, A)
    assert found.lambda_max.kind == "deterministic"
    assert found.lambda_max.relative_gap <= 1e-6
    assert found.products == 12
    assert found.stopped_by == "products"


def test_one_end_takes_fewer_products_than_both_and_the_other_still_holds() -> None:
    rng = np.random.default_rng(0)
    A = rotated(np.concatenate([[8.0, 5.0, 3.0], rng.normal(size=297) * 0.1]), 3)
    one, two = (whole(krylov(A), None, delta=1e-6, gap=1e-6, both=both)[0] for both in (False, True))
    assert one.products < two.products / 2
    assert holds(one, A)
    assert one.lambda_max.relative_gap <= 1e-6 < one.lambda_min.relative_gap
    assert two.lambda_min.relative_gap <= 1e-6
    assert one.stopped_by == two.stopped_by == "gap"


def test_a_run_stops_when_only_rounding_is_left() -> None:
    A = rotated(np.random.default_rng(1).normal(size=200), 4)
    found, _ = whole(krylov(A), None, delta=1e-9, gap=1e-12, products=150)
    assert found.stopped_by == "precision"
    assert found.products < 100
    assert holds(found, A)
    assert found.floor is not None
    assert found.lambda_max.relative_gap == pytest.approx(found.floor, rel=0.2)


def test_single_precision_products_raise_the_failure_probability_that_they_can_carry() -> None:
    A = rotated(np.concatenate([[8.0, 5.0], np.random.default_rng(2).normal(size=298) * 0.1]), 3)
    single = A.float()
    product = Lanczos(lambda v: (single @ v.float()).double(), 300, torch.device("cpu"), 0, 2.0**-24, homogeneity=True)
    error = float(torch.linalg.matrix_norm(A - single.double()))
    rounding = Rounding("measured", error, failure_probability=1e-7)
    found, _ = whole(product, None, delta=1e-6, gap=1e-6, products=200, rounding=rounding)
    top = found.lambda_max
    assert found.stopped_by == "precision"
    assert found.products < 60
    assert 1e-6 < top.failure_probability <= 0.05
    assert top.relative_gap <= 1e-3
    assert holds(found, A)


@pytest.mark.parametrize("size", [1e-9, 1e-6, 1e-3, 0.5])
def test_products_that_change_their_input_or_vary_give_no_wrong_certificate(size: float) -> None:
    """Either the interval is wide enough or fresh products void it."""
    A, calls = rotated(np.linspace(-1, 1, 40), 1), iter(range(10**6))

    def changing(v: torch.Tensor) -> torch.Tensor:
        image = A @ v
        v += size * image
        return image

    def varying(v: torch.Tensor) -> torch.Tensor:
        return (1 + size * (next(calls) % 7)) * (A @ v)

    for product in (changing, varying):
        lanczos = Lanczos(product, 40, torch.device("cpu"), 0, UNIT, homogeneity=True)
        found, residual = whole(lanczos, moments_of(A))
        assert holds(found, A) or residual.excess > residual.explained


def test_an_honest_product_is_confirmed() -> None:
    A = rotated(np.linspace(-1, 1, 40), 1)
    residual = whole(krylov(A), None)[1]
    assert residual.excess < 1e-14 < residual.explained < 1e-11


@pytest.mark.parametrize("excess", [0.0, 1e-13, 7e-5])
def test_a_near_multiple_of_the_identity_is_enclosed(excess: float) -> None:
    """Whether or not the recurrence sees the larger eigenvalue, it must not be excluded."""
    values = torch.ones(2500, dtype=torch.float64)
    values[1234] += excess
    for seed in range(20):
        lanczos = Lanczos(lambda v: values * v, 2500, torch.device("cpu"), seed, UNIT, homogeneity=True)
        found, _ = whole(lanczos, None, delta=1e-6, gap=1e-6)
        assert found.lambda_max.lower <= 1 + excess <= found.lambda_max.upper
        assert found.lambda_max.relative_gap < 1e-4


def test_a_bound_that_failed_narrows_no_certain_end() -> None:
    """A bound on ‖H‖_F² that does not hold, as it may, is of no account once the basis spans everything."""
    lanczos = krylov(rotated(np.array([5.0, 1.0, 0.5, 0.2, 0.1, -0.3]), seed=0))
    lanczos.step()
    premises = Premises(ROUNDING, CertifiedNorm(1.0, 1e-3), 1e-9, 1e-12)
    enclosing = Enclosing(lanczos, premises.scaled(lanczos.scaling))
    first = enclosing.evaluate().lambda_max
    assert first.upper < 5 * lanczos.scaling
    assert first.kind == "probabilistic"
    while not lanczos.exhausted:
        lanczos.step()
        last = enclosing.evaluate(final=True).lambda_max
    assert last.kind == "deterministic"
    assert last.derivation.theorem == "whole_space"
    assert last.lower <= 5 * lanczos.scaling <= last.upper
