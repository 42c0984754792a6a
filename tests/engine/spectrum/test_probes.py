"""Moments by random probes: how often their bound fails, and what an enclosure makes of it."""

from __future__ import annotations

import math
from dataclasses import replace

import mpmath
import numpy as np
import pytest
import torch
from scipy import stats
from support.forms import full

from wsb_engine.bounds.certificates import CertifiedNorm, Enclosures, Premises
from wsb_engine.bounds.deflation import remainder
from wsb_engine.bounds.rounding import Rounding, frobenius_factor
from wsb_engine.spectrum.enclosure import Enclosing
from wsb_engine.spectrum.lanczos import Lanczos
from wsb_engine.spectrum.probes import Probed, deflate, probe, probe_count

UNIT = 2.0**-53


def rotated(eigenvalues: np.ndarray, seed: int) -> torch.Tensor:
    Q = stats.ortho_group.rvs(len(eigenvalues), random_state=seed)
    A = (Q * eigenvalues) @ Q.T
    return torch.from_numpy((A + A.T) / 2)


def probed(A: torch.Tensor, seed: int, delta: float, steps: int = 300) -> tuple[Lanczos, Probed]:
    lanczos = Lanczos(lambda v: A @ v, len(A), torch.device("cpu"), seed, UNIT)
    deflate(lanczos, steps)
    return lanczos, probe(lanczos, failure_probability=delta, seed=seed)


def evaluate(lanczos: Lanczos, moments: CertifiedNorm | None, delta: float, gap: float) -> Enclosures:
    """In the units of H."""
    rounding = Rounding("measured", 0.0, relative_square_error=1e3 * UNIT)
    found = Enclosing(lanczos, Premises(rounding, moments, delta, gap).scaled(lanczos.scaling)).evaluate()
    ends = {name: getattr(found, name).scaled(1 / lanczos.scaling) for name in ("lambda_max", "lambda_min")}
    return replace(found, **ends)


def spectrum(kind: str, rng: np.random.Generator) -> np.ndarray:
    if kind == "rank one":
        return np.array([1.0] + [0.0] * 11)
    if kind == "spread":
        return rng.normal(size=30)
    return np.concatenate([[9.0, -4.0], 0.1 * rng.normal(size=40)])


@pytest.mark.parametrize("kind", ["rank one", "spread", "two outliers"])
@pytest.mark.parametrize("probes", [2, 10, 24])
@pytest.mark.parametrize("delta", [0.05, 0.2])
def test_the_bound_fails_no_more_often_than_it_says(kind: str, probes: int, delta: float) -> None:
    """Nothing deflated; rank one is the worst case."""
    runs = 4000
    rng = np.random.default_rng(3)
    squares = spectrum(kind, rng) ** 2
    means = (rng.chisquare(1, (runs, probes, len(squares))) @ squares).mean(axis=1)
    misses = np.mean(means / frobenius_factor(probes, delta) < squares.sum())
    assert misses <= delta + 3 * math.sqrt(delta * (1 - delta) / runs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "runs"), [("rank one", 60), full("rank one", 200), full("spread", 200), full("two outliers", 200)]
)
def test_bounds_of_whole_runs_fail_no_more_often_than_they_say(kind: str, runs: int) -> None:
    delta = 0.05
    rng = np.random.default_rng(4)
    misses = ends = 0
    for seed in range(runs):
        A = rotated(spectrum(kind, rng), seed)
        lanczos, found = probed(A, seed, delta / 2, steps=4)
        misses += found.frobenius_squared < float(A.square().sum()) * (1 - 1e-12)
        norm = CertifiedNorm(found.frobenius_squared, found.failure_probability)
        top = evaluate(lanczos, norm, delta / 2, 1e-9).lambda_max
        ends += not top.lower <= float(torch.linalg.eigvalsh(A)[-1]) <= top.upper
    allowed = 3 * math.sqrt(delta * (1 - delta) / runs)
    assert misses / runs <= delta / 2 + allowed
    assert ends / runs <= delta + allowed


@pytest.mark.slow
@pytest.mark.parametrize("runs", [16, full(40)])
def test_the_estimate_of_the_trace_is_within_its_error(runs: int) -> None:
    rng = np.random.default_rng(5)
    deviations = []
    for seed in range(runs):
        A = rotated(rng.normal(size=50), seed)
        _, found = probed(A, seed, 1e-3, steps=5)
        deviations.append((found.trace - float(A.trace())) / found.trace_error)
    assert abs(np.mean(deviations)) < 3 / math.sqrt(runs)
    assert 0.6 < np.std(deviations) < 1.5


def test_what_earlier_steps_capture_is_not_estimated() -> None:
    A = rotated(np.array([9.0, 7.0, 5.0] + [0.0] * 40), 0)
    _, found = probed(A, 0, 1e-9)
    assert found.frobenius_squared == pytest.approx(155.0, rel=1e-9)
    assert found.trace == pytest.approx(21.0, rel=1e-9)
    assert found.trace_error < 1e-9


def test_the_bound_is_about_four_times_the_estimate() -> None:
    A = rotated(np.random.default_rng(0).normal(size=400), 1)
    lanczos, found = probed(A, 0, 1e-9, steps=0)
    assert lanczos.steps == 0
    assert 3.6 < found.frobenius_squared / float(A.square().sum()) < 4.4


@pytest.mark.parametrize(("delta", "count"), [(5e-10, 68), (1e-6, 44), (0.05, 10)])
def test_the_number_of_probes_is_known_before_the_first(delta: float, count: int) -> None:
    assert probe_count(delta) == count
    assert frobenius_factor(count, delta) >= 0.25 > frobenius_factor(count - 1, delta)


@pytest.mark.parametrize(("count", "delta"), [(2, 1e-300), (2, 0.5), (10, 1e-6), (20, 5e-10), (10**6, 1e-3)])
def test_the_factor_solves_its_equation_and_is_rounded_downwards(count: int, delta: float) -> None:
    x = frobenius_factor(count, delta)
    with mpmath.workdps(60):
        target = 2 * mpmath.log(1 / mpmath.mpf(delta)) / count
        root = -mpmath.lambertw(-mpmath.exp(-1 - target), 0).real
        assert root * (1 - mpmath.mpf("1e-9")) <= x <= root


@pytest.mark.parametrize(
    ("count", "delta", "widening"),
    [(10, 1e-3, 3.1), (10, 1e-6, 6.5), (10, 1e-9, 13.1), (20, 1e-3, 2.1), (20, 1e-6, 3.1), (20, 1e-9, 4.5)],
)
def test_the_factors_are_those_of_the_mathematics(count: int, delta: float, widening: float) -> None:
    assert frobenius_factor(count, delta) ** -0.5 == pytest.approx(widening, abs=0.06)


def test_no_probe_is_the_start_vector() -> None:
    """A probe along the start vector would see nothing of the complement, whatever the seed."""
    A = rotated(np.linspace(-1, 1, 30), 0)
    for seed in (0, 7, 2**62):
        lanczos = Lanczos(lambda v: A @ v, 30, torch.device("cpu"), seed, UNIT)
        deflate(lanczos, 1)
        sizes: list[float] = []

        def image(v: torch.Tensor, sizes: list[float] = sizes, lanczos: Lanczos = lanczos) -> torch.Tensor:
            sizes.append(float(torch.linalg.vector_norm(v)))
            return lanczos.scaling * A @ v

        lanczos.image = image
        probe(lanczos, failure_probability=0.05, seed=seed)
        assert min(sizes) > 1.0


def both(A: torch.Tensor) -> tuple[Enclosures, Enclosures, Lanczos, Probed]:
    lanczos, found = probed(A, 0, 5e-10)
    for _ in range(3):
        lanczos.step()
    norm = CertifiedNorm(found.frobenius_squared, found.failure_probability)
    with_probes = evaluate(lanczos, norm, 5e-10, 1e-12)
    without = evaluate(lanczos, None, 1e-9, 1e-12)
    return with_probes, without, lanczos, found


@pytest.mark.slow
def test_an_enclosure_with_probes_is_no_wider_than_half_the_risk_costs() -> None:
    """Beside the probes the start vector has only half of δ; its bound alone must not be missed by more."""
    for seed in range(10):
        A = rotated(np.random.default_rng(seed).normal(size=60), seed)
        with_probes, _, lanczos, _ = both(A)
        halved = evaluate(lanczos, None, 5e-10, 1e-12)
        assert with_probes.lambda_max.upper <= halved.lambda_max.upper
        assert with_probes.lambda_min.lower >= halved.lambda_min.lower


def test_probes_tighten_an_enclosure_that_is_still_open() -> None:
    A = rotated(np.concatenate([[30.0, 29.9], np.random.default_rng(0).normal(size=200)]), 0)
    lanczos, found = probed(A, 0, 5e-10, steps=4)
    norm = CertifiedNorm(found.frobenius_squared, found.failure_probability)
    with_probes = evaluate(lanczos, norm, 5e-10, 1e-6).lambda_max
    without = evaluate(lanczos, None, 1e-9, 1e-6).lambda_max
    assert with_probes.kind == "probabilistic"
    assert with_probes.failure_probability == 1e-9
    assert with_probes.lower <= 30.0 <= with_probes.upper < without.upper


def test_a_bound_on_the_norm_without_a_trace_leaves_the_norm() -> None:
    A = rotated(np.linspace(-1, 2, 20), 0)
    lanczos = Lanczos(lambda v: A @ v, 20, torch.device("cpu"), 0, UNIT)
    for _ in range(5):
        lanczos.step()
    q = float(A.square().sum())
    T, beta = lanczos.tridiagonal / lanczos.scaling, lanczos.betas[-1] / lanczos.scaling
    rest = remainder(None, q, 20, T, beta)
    exact = remainder((float(A.trace()), float(A.trace())), q, 20, T, beta)
    assert rest is not None
    assert exact is not None
    assert rest.largest == rest.frobenius == -rest.smallest
    assert exact.largest <= rest.largest
    assert exact.smallest >= rest.smallest
