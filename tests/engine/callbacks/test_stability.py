from __future__ import annotations

import pytest
import torch
from support.forms import thinned
from torch import Tensor, nn

from wsb_engine.callbacks.stability import Descent, NoRatioError, largest, of_torch

CURVATURE = 3.0
SETTINGS = [
    {},
    {"momentum": 0.9},
    {"momentum": 0.9, "dampening": 0.5},
    {"dampening": 0.5},
    {"momentum": 0.8, "nesterov": True},
    {"weight_decay": 0.7},
    {"momentum": 0.9, "weight_decay": 0.7},
    {"momentum": 0.8, "nesterov": True, "weight_decay": 0.7},
]


def descended(ratio: float, settings: dict[str, float]) -> float:
    """How far torch's own descent on a quadratic is from the minimum, from 1, with the rate of such a ratio."""
    [descent] = of_torch(*_sgd(1.0, settings))
    sgd, module = _sgd(ratio / descent.ratio(CURVATURE), settings)
    [theta] = module.parameters()
    for _ in range(600):
        sgd.zero_grad()
        (CURVATURE / 2 * theta.square()).sum().backward()
        sgd.step()
    return float(theta.detach().abs())


def _sgd(rate: float, settings: dict[str, float]) -> tuple[torch.optim.SGD, nn.Module]:
    module = nn.ParameterList([nn.Parameter(torch.ones((), dtype=torch.float64))])
    return torch.optim.SGD(module.parameters(), lr=rate, **settings), module


@pytest.mark.slow
@pytest.mark.parametrize("settings", thinned(SETTINGS, 4))
def test_descent_converges_below_a_ratio_of_one_and_diverges_above(settings: dict[str, float]) -> None:
    assert descended(0.97, settings) < 0.1
    assert descended(1.03, settings) > 10


def linear() -> nn.Linear:
    return nn.Linear(2, 2)


def test_the_largest_ratio_of_the_groups_counts() -> None:
    module = linear()
    groups = [{"params": [module.weight], "lr": 0.1}, {"params": [module.bias], "lr": 0.3}]
    ratio, descent = largest(of_torch(torch.optim.SGD(groups, lr=1.0), module), 2.0)
    assert (ratio, descent.group) == (pytest.approx(0.3), 1)


def test_the_largest_ratio_bounds_that_of_the_steps_that_groups_take_together() -> None:
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    H = A @ A.T
    eta = torch.tensor([0.1] * 3 + [0.4] * 3, dtype=torch.float64)
    decay = torch.tensor([5.0] * 3 + [0.0] * 3, dtype=torch.float64)
    together = torch.linalg.eigvals(eta.diag() @ (H + decay.diag())).real.max() / 2
    groups = [Descent(group=0, learning_rate=0.1, weight_decay=5.0), Descent(group=1, learning_rate=0.4)]
    assert together <= largest(groups, float(torch.linalg.eigvalsh(H)[-1]))[0]


def test_a_scheduler_changes_the_rate_that_is_read() -> None:
    module = linear()
    sgd = torch.optim.SGD(module.parameters(), lr=0.8)
    scheduler = torch.optim.lr_scheduler.StepLR(sgd, step_size=1, gamma=0.5)
    sgd.step()
    scheduler.step()
    assert [each.learning_rate for each in of_torch(sgd, module)] == [0.4]


def test_groups_without_parameters_of_the_module_do_not_count() -> None:
    module, other = linear(), linear()
    optimizers = [torch.optim.SGD(module.parameters(), lr=0.1), torch.optim.Adam(other.parameters())]
    assert [each.learning_rate for each in of_torch(optimizers, module)] == [0.1]
    with pytest.raises(NoRatioError, match="updates no parameter"):
        of_torch(optimizers, linear())


class Wrapper:
    """As Accelerate and Lightning wrap optimizers."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer, self.param_groups = optimizer, optimizer.param_groups


def test_an_optimizer_is_found_inside_a_wrapper() -> None:
    module = linear()
    wrapped = Wrapper(torch.optim.SGD(module.parameters(), lr=torch.tensor(0.25)))
    assert of_torch(wrapped, module)[0].learning_rate == 0.25  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad])
def test_an_optimizer_that_scales_each_coordinate_has_no_ratio(kind: type[torch.optim.Optimizer]) -> None:
    module = linear()
    with pytest.raises(NoRatioError, match=f"{kind.__name__} is not gradient descent"):
        of_torch(kind(module.parameters()), module)


def test_a_subclass_that_steps_otherwise_has_no_ratio() -> None:
    class Signs(torch.optim.SGD):
        def step(self, closure: object = None) -> None: ...

    class Named(torch.optim.SGD):
        """Steps as SGD does."""

    module = linear()
    with pytest.raises(NoRatioError, match="Signs"):
        of_torch(Signs(module.parameters(), lr=0.1), module)
    named = Named(module.parameters(), lr=0.1)
    torch.optim.lr_scheduler.StepLR(named, 1)
    assert of_torch(named, module)[0].learning_rate == 0.1


def test_an_optimizer_that_maximizes_has_no_ratio() -> None:
    module = linear()
    with pytest.raises(NoRatioError, match="maximizes"):
        of_torch(torch.optim.SGD(module.parameters(), lr=0.1, maximize=True), module)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_decoupled_weight_decay_shrinks_what_is_stable(momentum: float, nesterov: bool) -> None:
    """The step of Keras, as a matrix on (θ, v): its spectral radius passes 1 where the ratio does."""

    def radius(ratio: float) -> float:
        # Ratios are proportional to the rate.
        rule = {"momentum": momentum, "nesterov": nesterov, "weight_decay": 0.4, "decoupled": True}
        eta = ratio / Descent(group=0, learning_rate=1.0, **rule).ratio(CURVATURE)
        shrunk = 1 - eta * 0.4
        v = torch.tensor([-eta * CURVATURE, momentum], dtype=torch.float64)
        moved: Tensor = momentum * v + torch.tensor([-eta * CURVATURE, 0.0]) if nesterov else v
        step = torch.stack([torch.tensor([shrunk, 0.0]) + moved, v])
        return float(torch.linalg.eigvals(step).abs().max())

    assert radius(0.99) < 1 < radius(1.01)
