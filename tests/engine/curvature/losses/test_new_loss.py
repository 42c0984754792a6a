"""A loss that the engine has never seen: defined here, and right in every way in which H is used."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

import wsb_engine as wsb
from wsb_engine.analysis.monitor import Monitor
from wsb_engine.analysis.problem import Problem, pose
from wsb_engine.curvature.closed_form.layout import Layout, cheapest_layout
from wsb_engine.curvature.closed_form.running_error import running_error
from wsb_engine.curvature.closed_form.sums import closed_form
from wsb_engine.curvature.gauss_newton import general_trace, mlp_trace
from wsb_engine.curvature.losses import Loss, LossDerivatives, Targets
from wsb_engine.curvature.losses.base import ElementwiseDerivatives
from wsb_engine.curvature.products.autodiff import AutodiffProduct

SAMPLES, FEATURES, HIDDEN, LOGITS = 7, 3, 9, 3
WEIGHTS = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)
"""Of the logits in the squared error."""
COUPLING = torch.tensor([[2.0, 0.5, -0.3], [0.5, 1.0, 0.2], [-0.3, 0.2, 0.7]], dtype=torch.float64)


class Elementwise(Loss):
    """A sum over logits; ``entry`` gives a logit's ℓ, ℓ′ and ℓ″."""

    def entry(self, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        raise NotImplementedError

    def values(self, z: Tensor, y: Tensor) -> Tensor:
        return self.entry(z.double(), y)[0].sum(dim=1)

    def derivatives(self, z: Tensor, y: Tensor) -> ElementwiseDerivatives:
        return ElementwiseDerivatives(*self.entry(z.double(), y.double())[1:])

    def correct(self, z: Tensor, y: Tensor) -> None:
        return None

    def classes(self, logits: int) -> int:
        return logits

    def targets(self, y: Tensor, logits: int) -> Tensor:
        return y.double()


class SquaredError(Elementwise):
    """Without probabilities: a constant curvature."""

    def entry(self, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return WEIGHTS * (z - y).square() / 2, WEIGHTS * (z - y), WEIGHTS.expand_as(z)


class Sigmoids(Elementwise):
    """Of several labels, each by itself."""

    def entry(self, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        p = torch.sigmoid(z)
        return nn.functional.softplus(z) - y * z, p - y, p * (1 - p)


class Cosine(Elementwise):
    """Not convex, as the focal loss is not."""

    convex = False

    def entry(self, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return 1 - torch.cos(z - y), torch.sin(z - y), torch.cos(z - y)


@dataclass(frozen=True)
class Constant(LossDerivatives):
    gradient: Tensor

    @property
    def diagonal(self) -> Tensor:
        return COUPLING.diagonal().expand_as(self.gradient)

    def curvature(self) -> Tensor:
        return COUPLING.expand(len(self.gradient), -1, -1)

    def factor(self) -> Tensor:
        return torch.linalg.cholesky(COUPLING, upper=True).expand(len(self.gradient), -1, -1)

    def factor_times(self, W: Tensor) -> Tensor:
        return self.factor() @ W

    def column_product(self, scale: float) -> Callable[[Tensor], Tensor]:
        return lambda r: scale * torch.einsum("ij,jmb->imb", COUPLING, r)


class Quadratic(Elementwise):
    """Curvature that is neither diagonal nor a softmax's."""

    def values(self, z: Tensor, y: Tensor) -> Tensor:
        d = z.double() - y
        return (d * (d @ COUPLING)).sum(dim=1) / 2

    def derivatives(self, z: Tensor, y: Tensor) -> Constant:
        return Constant((z.double() - y) @ COUPLING)


FORMULAS: dict[type[Loss], Callable[[Tensor, Tensor], Tensor]] = {
    SquaredError: lambda z, y: (WEIGHTS / 2 * (z - y) ** 2).sum(dim=1),
    Sigmoids: lambda z, y: binary_cross_entropy_with_logits(z, y, reduction="none").sum(dim=1),
    Cosine: lambda z, y: (1 - torch.cos(z - y)).sum(dim=1),
    Quadratic: lambda z, y: torch.einsum("si,ij,sj->s", z - y, COUPLING, z - y) / 2,
}
"""As written, for the oracle."""


@dataclass(frozen=True)
class Case:
    problem: Problem
    hessian: Tensor
    """By double backward of the formula as written, without the scale."""
    gauss_newton: Tensor
    """G alike: the Hessian of the formula at logits that are linearised."""


@cache
def case(kind: type[Loss]) -> Case:
    """A small MLP with that loss instead of the cross-entropy that it was posed with."""
    torch.manual_seed(0)
    x, y, w = torch.randn(SAMPLES, FEATURES), torch.rand(SAMPLES, LOGITS), torch.rand(SAMPLES) + 0.1
    x, y, w = x.double(), y.double(), w.double() / w.double().sum()
    module = nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, LOGITS)).double()
    options, loss = wsb.Options(), kind()
    posed = pose(
        wsb.from_module(module), wsb.Batch(x, torch.zeros(SAMPLES).long()), options, Monitor(options, None, 0.0)
    )
    targets = Targets(loss.targets(y, LOGITS), w)
    objective = replace(posed.objective, loss=loss, targets=targets)
    objective = replace(objective, scale=loss.sizes(posed.logits.compared(objective)).scale)
    assert posed.structure is not None
    net = replace(posed.structure.net, loss=loss, scale=objective.scale)
    problem = replace(posed, objective=objective, structure=replace(posed.structure, net=net))
    names = list(objective.selected)
    theta = torch.cat([p.detach().reshape(-1) for p in module.parameters()])
    assert names == [name for name, _ in module.named_parameters()]

    def logits(flat: Tensor) -> Tensor:
        pieces = flat.split([p.numel() for p in module.parameters()])
        values = {name: piece.view_as(objective.selected[name]) for name, piece in zip(names, pieces, strict=True)}
        return torch.func.functional_call(module, values, (x,))

    def linear(flat: Tensor) -> Tensor:
        return logits(theta) + torch.autograd.functional.jacobian(logits, theta) @ (flat - theta)

    def total(z: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda flat: (w * FORMULAS[kind](z(flat), y)).sum()

    hessians = [torch.autograd.functional.hessian(total(z), theta) for z in (logits, linear)]
    return Case(problem, *hessians)


@pytest.fixture(params=FORMULAS, ids=lambda kind: kind.__name__)
def found(request: pytest.FixtureRequest) -> Case:
    return case(request.param)


def check_moments(found: Case, layout: Layout) -> None:
    problem = found.problem
    assert problem.structure is not None
    result = closed_form(problem.structure.net, problem.tile, problem.objective.targets.weights, layout)
    scale = problem.objective.scale
    assert result.trace / scale == pytest.approx(float(found.hessian.trace()), rel=1e-11)
    assert result.frobenius_squared / scale**2 == pytest.approx(float(found.hessian.square().sum()), rel=1e-11)


def layout_of(found: Case, prefer: str) -> Layout:
    assert found.problem.structure is not None
    return cheapest_layout(found.problem.structure.net, SAMPLES, memory=1 << 28, itemsize=8, prefer=prefer)


@pytest.mark.parametrize("prefer", ["auto", "pairs", "block"])
def test_the_closed_form_gives_the_trace_and_the_norm_in_every_way_of_summing(found: Case, prefer: str) -> None:
    check_moments(found, layout_of(found, prefer))


@pytest.mark.parametrize("kind", [kind for kind in FORMULAS if kind.convex], ids=lambda kind: kind.__name__)
def test_the_closed_form_takes_the_factor_of_a_convex_loss(kind: type[Loss]) -> None:
    layout = layout_of(case(kind), "pairs")
    check_moments(case(kind), replace(layout, forms={**layout.forms, (0, 0): "factor"}))


def test_a_loss_that_is_not_convex_is_never_summed_by_factors() -> None:
    structures = {kind.__name__: case(kind).problem.structure for kind in FORMULAS}
    forms = {}
    for name, structure in structures.items():
        assert structure is not None
        wide = replace(structure.net.layers[0], W=torch.zeros(400, FEATURES), b=torch.zeros(400))
        last = replace(structure.net.layers[1], W=torch.zeros(LOGITS, 400))
        net = replace(structure.net, layers=(wide, last))
        forms[name] = cheapest_layout(net, 1000, memory=1 << 30, itemsize=8, prefer="pairs").forms[0, 0]
    assert forms == {"SquaredError": "factor", "Sigmoids": "factor", "Cosine": "packed", "Quadratic": "factor"}


def test_all_products_equal_the_dense_hessian(found: Case) -> None:
    problem, H = found.problem, found.problem.objective.scale * found.hessian
    V = torch.randn(len(H), 5, dtype=torch.float64)
    for product in (problem.hessian_product(), AutodiffProduct(problem.objective)):
        torch.testing.assert_close(product(V), H @ V, rtol=1e-11, atol=1e-12)
    twice = torch.stack([problem.objective.twice_backward(v) for v in V.T], dim=1)
    torch.testing.assert_close(twice, H @ V, rtol=1e-11, atol=1e-12)


def test_the_gauss_newton_trace_is_that_of_linearised_logits(found: Case) -> None:
    problem = found.problem
    assert problem.structure is not None
    by_hand = mlp_trace(problem.structure.net, problem.tile, problem.objective.targets.weights)
    general = general_trace(problem.objective, LOGITS)
    if not problem.objective.loss.convex:
        assert (by_hand, general) == (None, None)
        return
    want = problem.objective.scale * float(found.gauss_newton.trace())
    assert (by_hand, general) == (pytest.approx(want, rel=1e-11), pytest.approx(want, rel=1e-11))


def test_rounding_is_measured_where_a_loss_has_no_bounds_on_its_own(found: Case) -> None:
    problem = found.problem
    assert problem.structure is not None
    assert running_error(problem.structure.net, problem.tile, problem.objective.targets.weights, memory=1 << 28) is None


def test_the_scale_brings_derivatives_near_one_and_accuracy_is_none(found: Case) -> None:
    objective, z = found.problem.objective, found.problem.logits.kept
    assert z is not None
    at = objective.loss.derivatives(z, objective.targets.y)
    largest = max(float(at.gradient.abs().max()), float(at.diagonal.abs().max()))
    assert 0.125 <= largest * objective.scale <= 2
    assert math.log2(objective.scale) % 2 == 0
    assert objective.loss.averages(found.problem.logits.compared(objective)).accuracy is None
