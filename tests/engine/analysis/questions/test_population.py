"""The distribution's λ_max from one batch, against dense Hessians of every row and Hall's definition by bisection."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from support.eager import randomised
from support.forms import crossed, full
from torch import Tensor, nn
from torch.nn import functional as F

import wsb_engine as wsb
from wsb_engine.analysis.members import Devices
from wsb_engine.analysis.monitor import Monitor
from wsb_engine.analysis.problem import pose
from wsb_engine.analysis.questions import population as stage
from wsb_engine.curvature.folds import FOLDS, Fold, folds
from wsb_engine.report import Interval, Population, RowCurvature
from wsb_engine.units import in_true_units

N = 200
LEVEL = 0.95


def perceptron() -> nn.Module:
    return randomised(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)))


def general() -> nn.Module:
    return randomised(nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.LayerNorm(3, eps=1.0), nn.Linear(3, 3)))


def data(rows: int = N, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 3, generator=generator, dtype=torch.float64)
    weights = 0.5 + torch.rand(rows, generator=generator, dtype=torch.float64)
    return x, torch.randint(3, (rows,), generator=generator), weights


def analysed(module: nn.Module, batch: wsb.Batch, **options: Any) -> wsb.Report:
    given = {"population": LEVEL, "moments": "none", "ends": "largest", "device": "cpu", "dtype": "float64", **options}
    return wsb.analyze(wsb.from_module(module), batch, wsb.Options.model_validate(given))


@cache
def report_of(kind: str = "perceptron", weighted: bool = False) -> wsb.Report:
    x, y, weights = data()
    batch = wsb.Batch(x.numpy(), y.numpy(), weights.numpy() if weighted else None)
    return analysed({"perceptron": perceptron, "general": general}[kind](), batch)


def found(report: wsb.Report) -> Population:
    assert report.population is not None, report.warnings
    return report.population


def codes(report: wsb.Report) -> list[str]:
    return [warning.code for warning in report.warnings]


def hessians(module: nn.Module, x: Tensor, y: Tensor) -> NDArray[np.float64]:
    """∇² of the summed cross-entropies of each row that are not ignored, by double backward, (N, P, P).

    Each is the derivative, along how often its row counts, of the Hessian of the rows' sum.
    """
    start = {name: tensor.detach() for name, tensor in module.named_parameters()}
    sizes = [tensor.numel() for tensor in start.values()]
    flat = torch.cat([tensor.reshape(-1) for tensor in start.values()]).requires_grad_()
    pieces = zip(start.items(), flat.split(sizes), strict=True)
    values = {name: piece.view_as(tensor) for (name, tensor), piece in pieces}
    z = torch.func.functional_call(module, values, (x,))
    losses = F.cross_entropy(z.flatten(0, -2), y.flatten(), reduction="none").view(len(x), -1).sum(1)
    H, counts = torch.zeros(len(x), len(flat), len(flat), dtype=torch.float64), torch.ones(len(x)).double()
    (slope,) = torch.autograd.grad(counts.requires_grad_() @ losses, flat, create_graph=True)
    for i in range(len(flat)):
        (row,) = torch.autograd.grad(slope[i], flat, create_graph=True)
        for j in range(i + 1):
            (H[:, i, j],) = torch.autograd.grad(row[j], counts, retain_graph=True)
            H[:, j, i] = H[:, i, j]
    return H.numpy()


@pytest.fixture(scope="module")
def hessians_of() -> Callable[[str], NDArray[np.float64]]:
    x, y, _ = data()
    return cache(lambda kind: hessians({"perceptron": perceptron, "general": general}[kind](), x, y))


def limit(x: NDArray[np.float64], z: float, centre: float) -> float:
    """μ at which Hall's polynomial in √n (centre − μ)/σ is z, by bisection."""
    n, sigma = len(x), x.std()
    gamma = ((x - x.mean()) ** 3).mean() / sigma**3
    low, high = centre - 50 * sigma, centre + 50 * sigma
    for _ in range(200):
        middle = (low + high) / 2
        T = math.sqrt(n) * (centre - middle) / sigma
        value = T + gamma * T**2 / (3 * math.sqrt(n)) + gamma**2 * T**3 / (27 * n) + gamma / (6 * math.sqrt(n))
        low, high = (middle, high) if value > z else (low, middle)
    return (low + high) / 2


def top(H: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    values, vectors = np.linalg.eigh(H)
    return float(values[-1]), vectors[:, -1]


@pytest.mark.parametrize(("kind", "weighted"), crossed(["perceptron", "general"], [False, True]))
def test_the_interval_is_that_of_dense_hessians(
    hessians_of: Callable[[str], NDArray[np.float64]], kind: str, weighted: bool
) -> None:
    given, h = data()[2], hessians_of(kind)
    w = given.numpy() if weighted else np.ones(N)
    numbers = folds(torch.from_numpy(w), seed=0).numpy()
    value, v = top(np.tensordot(w, h, 1) / w.sum())
    r, o = np.einsum("i,sij,j->s", v, h, v), np.empty(N)
    for fold in range(FOLDS):
        rest, inside = np.where(numbers == fold, 0, w), numbers == fold
        _, u = top(np.tensordot(rest, h, 1))
        o[inside] = np.einsum("i,sij,j->s", u, h[inside], u)
    mean = float(w @ o / w.sum())
    r, o = (w * (each - w @ each / w.sum()) / w.mean() for each in (r, o))
    z = NormalDist().inv_cdf(0.975)
    lower, upper = limit(o, z, mean), limit(r, -z, value)
    part = found(report_of(kind, weighted))
    assert part.lambda_max.upper == pytest.approx(upper, rel=2e-6)
    # Eigenvectors of folds have converged to a thousandth only.
    assert part.lambda_max.lower == pytest.approx(lower, rel=1e-4)
    assert part.in_sample.mean == pytest.approx(value, rel=1e-6)
    assert part.in_sample.standard_deviation == pytest.approx(r.std(), rel=1e-3)
    assert part.cross_fitted.mean == pytest.approx(mean, rel=1e-4)
    assert part.estimate == pytest.approx((5 * value + 4 * mean) / 9, rel=1e-4)
    assert part.factor == pytest.approx(max(upper / value, value / lower), rel=1e-4)
    rows = (10 * z * max(r.std(), o.std()) / value) ** 2
    assert part.rows_for_ten_percent == pytest.approx(rows, rel=2e-3, abs=1)
    assert (part.rows, part.folds, part.kind, part.confidence) == (N, 5, "asymptotic", LEVEL)


@pytest.mark.slow
def test_rows_of_tokens_are_independent_and_tokens_are_not() -> None:
    """A row with more labels that count has more of the mean: what fluctuates is the ratio of both sums."""
    n = 240
    x, _, _ = data(rows=n * 3)
    module = randomised(nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)))
    generator = torch.Generator().manual_seed(4)
    y = torch.randint(3, (n, 3), generator=generator)
    y[torch.rand(n, 3, generator=generator) < 0.4] = -100
    y[5] = -100
    report = analysed(module, wsb.Batch(x.view(n, 3, 3).numpy(), y.numpy()))
    h = hessians(module, x.view(n, 3, 3), y)
    mass = (y >= 0).sum(1).numpy()
    value, v = top(h.sum(0) / mass.sum())
    terms = np.einsum("i,sij,j->s", v, h, v)
    counted = mass > 0
    about = ((terms - mass * value) / mass.mean())[counted] * counted.mean()
    part = found(report)
    assert part.rows == counted.sum() < n
    assert part.in_sample.standard_deviation == pytest.approx(about.std(), rel=1e-5)
    assert part.lambda_max.upper == pytest.approx(limit(about, -NormalDist().inv_cdf(0.975), value), rel=2e-6)


def test_it_is_off_by_default() -> None:
    x, y, _ = data()
    report = wsb.analyze(wsb.from_module(perceptron()), wsb.Batch(x.numpy(), y.numpy()), wsb.Options(moments="none"))
    assert report.population is None
    assert "population" not in report.timings
    assert "population" not in (report.products or {})


def test_products_and_checks_are_listed() -> None:
    report = report_of("general")
    assert 5 * 2 < (report.products or {})["population"] <= 5 * 25
    assert [check.passed for check in report.checks if check.name == "row_forms"] == [True]


def test_forms_that_do_not_add_up_fail_a_check(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = stage.curvatures
    monkeypatch.setattr(stage, "curvatures", lambda *given: 1.001 * whole(*given))
    x, y, _ = data()
    report = analysed(perceptron(), wsb.Batch(x.numpy(), y.numpy()))
    assert [check.name for check in report.failed_checks] == ["row_forms"]


def test_the_same_seed_gives_the_same_and_another_one_other_folds() -> None:
    x, y, _ = data()
    batch = wsb.Batch(x.numpy(), y.numpy())
    again, other = (found(analysed(perceptron(), batch, seed=seed)) for seed in (0, 1))
    assert again == found(report_of())
    assert other.cross_fitted.mean != again.cross_fitted.mean
    assert other.lambda_max.upper == pytest.approx(again.lambda_max.upper, rel=1e-6)


def test_folds_are_random_even_and_only_of_rows_with_a_weight() -> None:
    weights = torch.ones(203, dtype=torch.float64)
    weights[:3] = 0
    numbers = folds(weights, seed=7)
    assert (numbers[:3] == -1).all()
    assert torch.bincount(numbers[3:]).tolist() == [40] * 5
    assert numbers.tolist() != sorted(numbers.tolist())
    left = Fold(2, seed=7).left_out(weights)
    assert (left == 0).tolist() == ((numbers == 2) | (weights == 0)).tolist()


def test_more_confidence_is_wider() -> None:
    x, y, _ = data()
    wide = found(analysed(perceptron(), wsb.Batch(x.numpy(), y.numpy()), population=0.99)).lambda_max
    narrow = found(report_of()).lambda_max
    assert wide.lower < narrow.lower < narrow.upper < wide.upper


def test_three_vectors_give_nearly_the_same() -> None:
    x, y, _ = data()
    three = found(analysed(perceptron(), wsb.Batch(x.numpy(), y.numpy()), basis="three_vectors"))
    assert three.lambda_max.lower == pytest.approx(found(report_of()).lambda_max.lower, rel=1e-4)


def test_float32_gives_nearly_the_same() -> None:
    x, y, _ = data()
    single = analysed(perceptron(), wsb.Batch(x.numpy(), y.numpy()), dtype="float32", relative_gap=1e-3)
    assert not single.failed_checks
    assert found(single).lambda_max.lower == pytest.approx(found(report_of()).lambda_max.lower, rel=1e-3)


@pytest.mark.parametrize("kind", [perceptron, general])
def test_members_share_the_products_of_folds(kind: Any) -> None:
    (x, y, weights), options = data(rows=30), wsb.Options(dtype="float64", device="cpu")
    monitor = Monitor(options, None, 0.0)
    problem = pose(wsb.from_module(kind()), wsb.Batch(x.numpy(), y.numpy(), weights.numpy()), options, monitor)
    v = torch.randn(problem.objective.parameters, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    with Devices(problem, [torch.device("cpu")] * 3) as team:
        for index in (0, 3, 0):
            shared = stage.product(replace(problem, team=team), Fold(index, 0)).vector(v)
            torch.testing.assert_close(shared, stage.product(problem, Fold(index, 0)).vector(v), rtol=1e-12, atol=1e-14)


def test_too_few_rows_leave_the_part_out_and_keep_the_rest() -> None:
    x, y, _ = data(rows=199)
    report = analysed(perceptron(), wsb.Batch(x.numpy(), y.numpy()))
    assert report.population is None
    assert report.enclosure is not None
    assert "population_too_few_rows" in codes(report)


def test_rows_without_a_weight_do_not_count() -> None:
    x, y, weights = data(rows=220)
    weights[:30] = 0
    report = analysed(perceptron(), wsb.Batch(x.numpy(), y.numpy(), weights.numpy()))
    assert "population_too_few_rows" in codes(report)


def test_a_row_that_holds_most_of_the_curvature_leaves_the_part_out() -> None:
    x, y, weights = data()
    weights[17] = 1000
    report = analysed(perceptron(), wsb.Batch(x.numpy(), y.numpy(), weights.numpy()))
    assert report.population is None
    assert any("row 17 holds" in message for message in report.messages("population_one_row"))


def test_samples_that_depend_on_each_other_leave_the_part_out() -> None:
    x, y, _ = data()
    module = randomised(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 3)))
    report = analysed(module, wsb.Batch(x.numpy(), y.numpy()), relative_gap=1e-2)
    assert "population_coupled" in codes(report)
    assert report.enclosure is not None


def test_without_an_enclosure_it_is_refused_by_name() -> None:
    x, y, _ = data()
    with pytest.raises(wsb.OptionsError) as raised:
        analysed(perceptron(), wsb.Batch(x.numpy(), y.numpy()), enclosure=False)
    assert raised.value.code == "enclosure_required"


@pytest.mark.parametrize("level", [0.0, 0.49, 0.99999, 1.0, 95])
def test_a_confidence_outside_its_range_is_refused(level: float) -> None:
    with pytest.raises(ValidationError):
        wsb.Options(population=level)


def test_a_form_that_does_not_fit_leaves_the_part_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> Tensor:
        raise wsb.ResourceError("it does not fit", code="out_of_memory", advice="Give it more.")

    monkeypatch.setattr(stage, "curvatures", full)
    x, y, _ = data()
    report = analysed(perceptron(), wsb.Batch(x.numpy(), y.numpy()))
    assert report.messages("population_unavailable") == ["it does not fit: the distribution's λ_max is left out"]
    assert report.enclosure is not None


def test_the_time_limit_leaves_the_part_out(monkeypatch: pytest.MonkeyPatch) -> None:
    expired = Monitor.expired
    monkeypatch.setattr(
        Monitor, "expired", property(lambda run: run.current == "population" or expired.__get__(run, Monitor))
    )
    x, y, _ = data()
    report = analysed(perceptron(), wsb.Batch(x.numpy(), y.numpy()), time_limit=1e6)
    assert report.population is None
    assert report.enclosure is not None
    assert any("without the distribution's λ_max" in message for message in report.messages("time_limit"))


def test_a_caller_follows_its_progress_and_can_stop_it() -> None:
    x, y, _ = data()
    seen: list[float] = []

    def follow(now: wsb.Progress) -> None:
        if now.phase == "population":
            seen.append(now.fraction)
            if now.fraction > 0.5:
                raise InterruptedError("enough")

    options = wsb.Options(population=LEVEL, moments="none")
    with pytest.raises(InterruptedError):
        wsb.analyze(wsb.from_module(perceptron()), wsb.Batch(x.numpy(), y.numpy()), options, progress=follow)
    assert seen == sorted(seen)
    assert len(seen) > 5


def test_folds_that_do_not_converge_are_warned_of() -> None:
    x, y, _ = data()
    report = analysed(perceptron(), wsb.Batch(x.numpy(), y.numpy()), max_products=3, stop="gap")
    assert found(report).lambda_max.lower <= found(report_of()).lambda_max.lower
    assert "population_not_converged" in codes(report)


def test_units_of_a_scaled_hessian_are_divided_out() -> None:
    part, scale = found(report_of()), 4.0
    converted = in_true_units(part, scale)
    assert converted.lambda_max == Interval(lower=part.lambda_max.lower / 4, upper=part.lambda_max.upper / 4)
    assert converted.estimate == part.estimate / 4
    assert converted.in_sample == RowCurvature(
        mean=part.in_sample.mean / 4,
        standard_deviation=part.in_sample.standard_deviation / 4,
        skewness=part.in_sample.skewness,
    )
    unchanged = ("confidence", "factor", "rows", "rows_for_ten_percent", "largest_share")
    assert all(getattr(converted, name) == getattr(part, name) for name in unchanged)


def test_an_estimate_has_its_phase_or_says_that_it_is_left_out() -> None:
    classifier, options = wsb.from_module(perceptron()), wsb.Options(population=LEVEL)
    for rows, is_left_out in ((N, False), (150, True)):
        x, y, _ = data(rows=rows)
        estimate = wsb.estimate(classifier, wsb.Batch(x.numpy(), y.numpy()), options)
        assert ("population" in [phase.name for phase in estimate.phases]) is not is_left_out
        assert any("distribution" in reason for reason in estimate.left_out) is is_left_out


@pytest.mark.slow
@pytest.mark.parametrize("draws", [10, full(40)])
def test_intervals_cover_the_known_lambda_max_of_a_population(draws: int) -> None:
    """Draws with replacement from 2 000 rows, whose λ_max is known; the nominal 95 % less three standard errors."""
    x, y, _ = data(rows=2000, seed=5)
    truth = analysed(perceptron(), wsb.Batch(x.numpy(), y.numpy()), population=None).enclosure
    assert truth is not None
    rng, covered = np.random.default_rng(1), 0
    for _ in range(draws):
        rows = rng.integers(len(y), size=256)
        drawn = wsb.Batch(x[rows].numpy(), y[rows].numpy())
        interval = found(analysed(perceptron(), drawn, relative_gap=1e-4)).lambda_max
        covered += interval.lower <= truth.lambda_max.lower <= interval.upper
        assert interval.upper - interval.lower < 1.5 * truth.lambda_max.upper
    assert covered / draws >= LEVEL - 3 * math.sqrt(LEVEL * (1 - LEVEL) / draws)
