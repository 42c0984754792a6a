"""Radii of the running error analysis against Hessians in ball arithmetic: they may be large, never too small."""

from __future__ import annotations

import io
import statistics

import numpy as np
import pytest
import torch
from flint import arb, arb_mat
from support.exact import Dense, hessian
from support.forms import full
from torch import nn

import wsb_engine as wsb
from wsb_engine.analysis.monitor import Monitor
from wsb_engine.analysis.problem import Problem, pose
from wsb_engine.curvature.closed_form.layout import cheapest_layout
from wsb_engine.curvature.closed_form.running_error import running_error
from wsb_engine.curvature.closed_form.sums import closed_form

KINDS = {"tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "softplus": lambda: nn.Softplus(threshold=60)}
CLASSES = {
    "random": (0.0, 1.0, 1.0),
    "saturated": (0.0, 1.0, 30.0),
    "year": (2015.0, 3e-3, 1.0),
    "milliseconds": (1.7e12, 3e4, 1.0),
}
"""Mean and spread of the features, and a factor of the weights."""


def network(seed: int, kind: str, *, confident: bool) -> tuple[Problem, list[Dense], list[str], np.ndarray, float]:
    rng = np.random.default_rng(seed)
    mean, spread, factor = CLASSES[kind]
    depth = int(rng.integers(1, 5))
    widths = [int(rng.integers(1, 4)) for _ in range(depth)] + [int(rng.integers(1, 4))]
    name = str(rng.choice(list(KINDS)))
    modules: list[nn.Module] = []
    for l in range(depth):
        modules += [nn.Linear(widths[l], widths[l + 1]).double()] + [KINDS[name]()] * (l < depth - 1)
    module = nn.Sequential(*modules)
    linear = [each for each in module if isinstance(each, nn.Linear)]
    samples = int(rng.integers(1, 5))
    x = mean + spread * rng.normal(size=(samples, widths[0]))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.from_numpy(rng.normal(size=parameter.shape) * factor))
        linear[0].weight /= spread
        linear[0].bias -= linear[0].weight.sum(dim=1) * mean
        z = module(torch.from_numpy(x))
        largest = float(z.abs().max())
        factor = (300.0 if confident else min(largest, 10.0)) / largest
        linear[-1].weight *= factor
        linear[-1].bias *= factor
        z = module(torch.from_numpy(x))
    classes = max(widths[-1], 2)
    y = rng.dirichlet(np.ones(classes), samples) if rng.random() < 0.4 else rng.integers(0, classes, samples)
    weights = rng.random(samples) + 0.1 if rng.random() < 0.4 else None
    batch = wsb.Batch(x, y, weights)
    options = wsb.Options()
    problem = pose(wsb.from_module(module), batch, options, Monitor(options, None, 0.0))
    layers, count = [], 0
    for each in linear:
        index = np.arange(count, count + each.weight.numel()).reshape(each.weight.shape)
        count += each.weight.numel()
        bias = np.arange(count, count + each.bias.numel())
        count += each.bias.numel()
        layers.append(Dense(each.weight.detach().numpy(), index, each.bias.detach().numpy(), bias))
    return problem, layers, [name] * (depth - 1), x, float(z.abs().max())


def distance(found: torch.Tensor, truth: arb_mat) -> float:
    total = arb(0)
    for i in range(truth.nrows()):
        for j in range(truth.ncols()):
            total += (arb(float(found[i, j])) - truth[i, j]) ** 2
    return float(total.sqrt().upper())


@pytest.mark.parametrize(
    ("kind", "confident", "networks"),
    [
        *((kind, bool(index % 2), 10) for index, kind in enumerate(CLASSES)),
        *(full(kind, confident, 30) for kind in CLASSES for confident in (False, True)),
    ],
)
def test_no_rounding_error_exceeds_its_radius(kind: str, confident: bool, networks: int) -> None:
    over = []
    for seed in range(networks):
        problem, layers, activations, x, margin = network(seed, kind, confident=confident)
        assert problem.structure is not None
        objective, net = problem.objective, problem.structure.net
        P, targets = objective.parameters, objective.targets
        weights = targets.weights
        y = targets.rows(slice(None)).numpy()
        truth = hessian(layers, activations, x, y, weights.numpy(), P, 2 * margin) * arb(objective.scale)
        found = running_error(net, problem.tile, weights, memory=1 << 28)
        assert found is not None
        H = problem.hessian_product(P)(torch.eye(P, dtype=torch.float64))
        error = distance(H, truth)
        columns = P**0.5 * found.product
        assert error <= found.operator + columns
        if error > 0:
            over.append((found.operator + columns) / error)
        layout = cheapest_layout(net, len(weights), memory=1 << 28, itemsize=8)
        with torch.no_grad():
            sums = closed_form(net, problem.tile, weights, layout)
        factor = found.moments(net, layout, len(weights))
        q = sum((truth[i, j] ** 2 for i in range(P) for j in range(P)), arb(0))
        t = sum((truth[i, i] for i in range(P)), arb(0))
        high = (sums.frobenius_squared + factor * found.absolute**2) ** 0.5 + found.operator
        assert q.sqrt() <= high * (1 + 1e-12)
        assert abs(t - arb(sums.trace)) <= P**0.5 * (found.operator + factor * found.absolute) * (1 + 1e-12)
    print(f"{kind}: radii exceed the errors {statistics.median(over):.0f} times")


def test_activations_whose_slope_has_zeros_have_no_radii() -> None:
    options = wsb.Options()
    module = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2))
    batch = wsb.Batch(np.ones((2, 3)), np.array([0, 1]))
    problem = pose(wsb.from_module(module), batch, options, Monitor(options, None, 0.0))
    assert problem.structure is not None
    assert running_error(problem.structure.net, problem.tile, problem.objective.targets.weights, memory=1 << 28) is None


def test_a_trained_network_is_proven_to_ten_digits() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 5)).double()
    x = torch.randn(200, 20, dtype=torch.float64)
    y = module(x).argmax(dim=1)
    report = wsb.analyze(wsb.from_module(module), wsb.Batch(x, y.numpy()), wsb.Options(relative_gap=1e-12))
    assert report.enclosure is not None
    assert report.enclosure.rounding is not None
    assert report.enclosure.rounding.how == "proven"
    assert report.enclosure.lambda_max.kind == "deterministic"
    assert report.enclosure.lambda_max.relative_gap < 1e-9


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("scaled", [True, False])
def test_features_that_are_computed_first_are_measured(scaled: bool) -> None:
    """Their rounding is not in the radii."""

    class Standardised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net((x - 2015.0) / 3e-3 if scaled else x)

    buffer = io.BytesIO()
    x = np.array([[2015.0, 2015.01], [2015.003, 2014.99]]) if scaled else np.ones((2, 2))
    with torch.no_grad():
        torch.jit.save(torch.jit.trace(Standardised(), torch.zeros(2, 2), check_trace=False), buffer)
    report = wsb.analyze(wsb.load_model(buffer.getvalue()), wsb.Batch(x, np.array([0, 1])))
    assert report.enclosure is not None
    assert report.enclosure.rounding is not None
    assert report.enclosure.rounding.how == ("measured" if scaled else "proven")


def test_radii_take_no_more_memory_than_they_are_given() -> None:
    problem, *_ = network(0, "random", confident=False)
    assert problem.structure is not None
    net, weights, sizes = problem.structure.net, problem.objective.targets.weights, list[int]()

    def source(start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        sizes.append(stop - start)
        return problem.tile(start, stop)

    whole = running_error(net, source, weights, memory=1 << 28)
    assert sizes == [len(weights)]
    least = running_error(net, source, weights, memory=1)
    assert sizes[1:] == [1] * len(weights)
    assert whole is not None
    assert least is not None
    assert least.operator == pytest.approx(whole.operator, rel=1e-12)
