"""Three vectors through analyze(): when they are chosen, what they certify, and what is refused without a basis."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from support.eager import eager_hessian, randomised
from support.forms import crossed, full
from torch import nn

import wsb_engine as wsb
from wsb_engine.analysis.krylov import LEAST_SPARE
from wsb_engine.analysis.monitor import TimeLimitError
from wsb_engine.analysis.rounding import MOVED, PERTURBATIONS
from wsb_engine.curvature.cost import WORKING_VECTORS
from wsb_engine.spectrum.run import HOMOGENEITY_STEPS
from wsb_engine.spectrum.three_vectors import ThreeVectors
from wsb_engine.units import in_true_units

X = torch.randn(30, 1, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.arange(30) % 4
NETWORKS = {
    "perceptron": lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Tanh(), nn.Linear(8, 4)),
    "convolution": lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.GELU(), nn.Flatten(), nn.Linear(32, 4)),
    "normalised": lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 9), nn.LayerNorm(9), nn.SiLU(), nn.Linear(9, 4)),
}


def network(name: str, *, trained: bool) -> nn.Module:
    module = randomised(NETWORKS[name]())
    if trained:
        optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
        for _ in range(60):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(X), Y).backward()
            optimizer.step()
    return module


def analysed(module: nn.Module, **options: Any) -> wsb.Report:
    options = {"moments": "none", "basis": "three_vectors", **options}
    return wsb.analyze(wsb.from_module(module), wsb.Batch(X.numpy(), Y.numpy()), wsb.Options(**options))


def codes(report: wsb.Report) -> list[str]:
    return [warning.code for warning in report.warnings]


@pytest.fixture(scope="module")
def convolution() -> tuple[nn.Module, torch.Tensor]:
    """Trained, with the eigenvalues of its Hessian in ascending order."""
    module = network("convolution", trained=True)
    return module, torch.linalg.eigvalsh(eager_hessian(module, X, Y))


@pytest.mark.parametrize(("name", "trained"), crossed(NETWORKS, (False, True)))
def test_both_forms_hold_the_extremes_of_the_eager_hessian(name: str, trained: bool) -> None:
    module = network(name, trained=trained)
    values = torch.linalg.eigvalsh(eager_hessian(module, X, Y))
    smallest, largest = float(values[0]), float(values[-1])
    tolerance = 1e-12 * largest
    products = {}
    for basis in ("full", "three_vectors"):
        report = analysed(module, basis=basis, ends="largest")
        found = report.enclosure
        assert found is not None
        assert found.basis == basis
        assert found.lambda_max.lower - tolerance <= largest <= found.lambda_max.upper + tolerance
        assert found.lambda_min.lower - tolerance <= smallest <= found.lambda_min.upper + tolerance
        assert found.lambda_max.relative_gap is not None
        assert found.lambda_max.relative_gap <= 1e-6
        assert found.modelled is not None
        assert largest - tolerance <= found.modelled.upper <= found.lambda_max.upper + tolerance
        assert not report.failed_checks
        products[basis] = found.hessian_vector_products
    assert products["three_vectors"] <= 1.25 * products["full"] + 1


def test_single_precision_holds_the_eager_hessian(convolution: tuple[nn.Module, torch.Tensor]) -> None:
    module, largest = convolution[0], float(convolution[1][-1])
    report = analysed(module, dtype="float32", failure_probability=1e-3, relative_gap=1e-2)
    assert report.enclosure is not None
    assert report.enclosure.lambda_max.lower <= largest <= report.enclosure.lambda_max.upper


@pytest.mark.parametrize("basis", ["full", "three_vectors"])
def test_the_upper_end_follows_from_the_numbers_of_the_report(
    convolution: tuple[nn.Module, torch.Tensor], basis: str
) -> None:
    """h by a dense solve, with the report's own coefficients: it falls to the overlap at the reported end."""
    report = analysed(convolution[0], basis=basis, ends="largest")
    found, P = report.enclosure, report.model.parameters.count
    assert found is not None
    assert found.alpha is not None
    assert found.beta is not None
    assert found.gamma is not None
    assert found.epsilon is not None
    assert found.rounding is not None
    assert len(found.alpha) == len(found.beta) == len(found.gamma) == len(found.epsilon.values)
    assert len(found.alpha) == found.hessian_vector_products
    T = np.diag(found.alpha) + np.diag(found.beta[:-1], -1) + np.diag(found.gamma[1:], 1)
    c = 1e-6 / 2 / np.sqrt((P - 1) / (2 * np.pi))

    def h(tau: float) -> float:
        g = np.linalg.solve(tau * np.eye(len(T)) - T, np.eye(len(T))[0])
        return found.beta[-1] * g[-1] + float(np.dot(found.epsilon.values, g))

    upper, slack = found.lambda_max.upper, 2 * found.rounding.slack
    theta = float(np.linalg.eigvals(T).real.max())
    assert h(upper + 1e-3 * (upper - theta)) <= c
    assert h(upper - slack - 0.05 * (upper - slack - theta)) > c


def test_auto_takes_three_vectors_if_memory_holds_no_basis_and_names_what_would() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(36, 300), nn.ReLU(), nn.Linear(300, 4)).double()
    small = analysed(module, basis="auto", memory_limit=8 << 20, relative_gap=1e-3, ends="largest")
    assert small.enclosure is not None
    assert small.enclosure.basis == "three_vectors"
    (message,) = small.messages("three_vectors")
    needed = int(message.split("memory_limit=")[1].split()[0])
    options = {"basis": "auto", "relative_gap": 1e-3, "ends": "largest"}
    full, less = (analysed(module, memory_limit=limit, **options) for limit in (needed, needed - 8 * 300))
    assert full.enclosure is not None
    assert full.enclosure.basis == "full"
    assert "three_vectors" not in codes(full)
    assert less.enclosure is not None
    assert less.enclosure.basis == "three_vectors"


@pytest.mark.slow
def test_vectors_that_memory_keeps_spare_the_products_of_the_second_pass_and_change_no_number() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(36, 300), nn.ReLU(), nn.Linear(300, 4)).double()
    options = {"relative_gap": 1e-3, "ends": "largest", "memory_limit": 8 << 20}
    kept, repeated = (analysed(module, basis=basis, **options) for basis in ("auto", "three_vectors"))
    assert kept.enclosure == repeated.enclosure
    assert kept.enclosure is not None
    assert kept.products is not None
    assert repeated.products is not None
    steps = kept.enclosure.hessian_vector_products
    assert repeated.products["enclosure"] - kept.products["enclosure"] == steps - 1
    few = 8 * len(torch.nn.utils.parameters_to_vector(module.parameters())) * (WORKING_VECTORS + LEAST_SPARE)
    few, enough = (analysed(module, basis="auto", **options | {"memory_limit": few - less}) for less in (8, 0))
    assert few.products == repeated.products
    assert enough.products == kept.products


def test_a_basis_that_was_asked_for_is_kept_as_far_as_memory_goes() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(36, 300), nn.ReLU(), nn.Linear(300, 4)).double()
    report = analysed(module, basis="full", memory_limit=3 << 20, relative_gap=1e-9)
    assert report.enclosure is not None
    assert (report.enclosure.basis, report.enclosure.stopped_by) == ("full", "memory")
    assert "memory_limit=" in report.messages("enclosure_memory")[0]


@pytest.mark.parametrize("options", [{"spectrum": "top"}, full({"density": True})])
def test_what_needs_a_basis_is_refused(options: dict[str, Any]) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(36, 300), nn.ReLU(), nn.Linear(300, 4)).double()
    with pytest.raises(wsb.OptionsError) as wrong:
        analysed(module, **options)
    assert wrong.value.code == "basis_required"
    with pytest.raises(wsb.ResourceError) as small:
        analysed(module, basis="auto", memory_limit=2 << 20, **options)
    assert small.value.code == "memory_limit"
    # The advice works.
    needed = small.value.details["needed"]
    report = analysed(module, basis="auto", memory_limit=needed, relative_gap=1e-2, **options)
    assert report.spectrum is not None


def test_probes_without_a_basis_still_bound_the_norm(convolution: tuple[nn.Module, torch.Tensor]) -> None:
    module, values = convolution
    report = analysed(module, moments="probes", failure_probability=1e-3, ends="largest")
    assert report.moments is not None
    assert report.moments.frobenius_squared >= float(values.square().sum())
    assert "probes_without_basis" in codes(report)
    assert report.enclosure is not None
    assert report.enclosure.lambda_max.lower <= float(values[-1]) <= report.enclosure.lambda_max.upper


def test_exact_moments_change_nothing_without_a_basis() -> None:
    module = network("perceptron", trained=True)
    report = analysed(module, moments="closed_form")
    assert report.enclosure is not None
    assert report.enclosure.lambda_max.kind == "probabilistic"
    assert report.bounds is not None
    assert report.bounds.wolkowicz_styan.lambda_max.upper >= report.enclosure.lambda_max.lower


def test_a_second_pass_that_runs_out_of_time_leaves_an_enclosure_that_holds(
    convolution: tuple[nn.Module, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(self: ThreeVectors, weights: torch.Tensor) -> torch.Tensor:
        raise TimeLimitError("the time limit of 9 s passed", code="time_limit", advice="Raise time_limit.")

    monkeypatch.setattr(ThreeVectors, "combinations", late)
    module, largest = convolution[0], float(convolution[1][-1])
    report = analysed(module)
    assert report.enclosure is not None
    assert 0 < report.enclosure.lambda_max.lower <= largest <= report.enclosure.lambda_max.upper
    assert "second_pass_cut" in codes(report)
    assert not report.failed_checks


def test_a_time_limit_leaves_room_for_the_second_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def within(self: object, seconds: float) -> bool:
        asked.append(seconds)
        return False

    monkeypatch.setattr("wsb_engine.analysis.monitor.Monitor.expires_within", within)
    monkeypatch.setattr("wsb_engine.analysis.monitor.Monitor.expired", False)
    report = analysed(network("perceptron", trained=True))
    assert report.enclosure is not None
    waits = asked[-report.enclosure.hessian_vector_products :]
    # After one step there is nothing to repeat: its vector is drawn.
    assert waits[0] == 0
    assert all(later > 0 for later in waits[1:])
    assert waits[-1] > 5 * waits[1]


def test_the_second_pass_counts_among_the_products(convolution: tuple[nn.Module, torch.Tensor]) -> None:
    report = analysed(convolution[0])
    assert report.enclosure is not None
    assert report.products is not None
    steps = report.enclosure.hessian_vector_products
    repeated = sum(step < steps for step in HOMOGENEITY_STEPS)
    outer, symmetry = 2, 2
    assert report.products["enclosure"] == steps + repeated + (steps - 1) + outer + symmetry
    # Perturbed products beside a random vector each, then with the two outer Ritz vectors.
    assert report.products["rounding"] == PERTURBATIONS * (2 + outer) + MOVED * (1 + outer)


def test_a_report_scaled_back_scales_its_recurrence() -> None:
    report = analysed(network("perceptron", trained=False))
    enclosure = report.enclosure
    assert enclosure is not None
    assert enclosure.alpha is not None

    scaled = in_true_units(report, 4.0).enclosure
    assert scaled is not None
    assert scaled.alpha == [value / 4 for value in enclosure.alpha]
    assert scaled.epsilon is not None
    assert enclosure.epsilon is not None
    assert scaled.epsilon.values == [value / 4 for value in enclosure.epsilon.values]
