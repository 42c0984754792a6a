"""Rounding is measured by moving inputs, except for those that are only compared."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import wsb_engine as wsb
from wsb_engine.analysis import rounding
from wsb_engine.analysis.perturbation import perturbed
from wsb_engine.curvature.products.autodiff import Objective

Y = np.array([0, 1, 2, 0])
X = np.float32([[0.5, 3], [0.2, 1], [0.9, 2], [0.4, 3]])
"""Of the second column 1, 2 and 3 are categories; 0.5 is an edge."""


class Categories(nn.Module):
    """A layer over a smooth feature, and a weight for each category."""

    def __init__(self) -> None:
        super().__init__()
        self.smooth = nn.Linear(1, 3)
        self.category = nn.Linear(3, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        is_category = (x[:, 1:] == torch.arange(1, 4)).to(x.dtype)
        return self.smooth(torch.sin(x[:, :1])) + self.category(is_category)  # type: ignore[no-any-return]


class Bins(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        above = (x[:, :1] >= 0.5).to(x.dtype)
        return self.head(torch.cat([above, torch.floor(x[:, 1:])], 1))  # type: ignore[no-any-return]


class Threshold(nn.Module):
    """A feature that jumps at 0.5 and is used as a number as well."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x * (x >= 0.5))  # type: ignore[no-any-return]


def largest_eigenvalue(module: nn.Module) -> float:
    module = module.double()
    names, tensors = zip(*module.named_parameters(), strict=True)
    sizes = [tensor.numel() for tensor in tensors]

    def loss(flat: Tensor) -> Tensor:
        parts = [part.reshape(each.shape) for part, each in zip(flat.split(sizes), tensors, strict=True)]
        z = torch.func.functional_call(module, dict(zip(names, parts, strict=True)), torch.from_numpy(X).double())
        return F.cross_entropy(z, torch.from_numpy(Y))

    H = torch.autograd.functional.hessian(loss, torch.cat([each.detach().reshape(-1) for each in tensors]))
    return float(torch.linalg.eigvalsh(H)[-1])


def analysed(module: nn.Module, x: np.ndarray = X) -> wsb.Report:
    return wsb.analyze(wsb.from_module(module), wsb.Batch(x, Y), wsb.Options(moments="none"))


@pytest.mark.parametrize("module", [Categories, Bins])
def test_inputs_that_are_only_compared_do_not_widen_the_enclosure(module: type[nn.Module]) -> None:
    torch.manual_seed(0)
    net = module()
    report = analysed(net)
    assert report.enclosure is not None
    found, truth = report.enclosure.lambda_max, largest_eigenvalue(net)
    assert found.lower <= truth <= found.upper
    assert found.upper - found.lower <= 1e-8 * truth
    assert report.enclosure.rounding.how == "measured"


def test_a_derivative_that_vanishes_by_the_values_of_parameters_does_not_exempt_an_input(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    moved = []

    def recorded(*args: Any) -> Objective:
        objective = perturbed(*args)
        moved.append(objective.chunk_inputs(slice(0, len(X)))["x"])
        return objective

    monkeypatch.setattr(rounding, "perturbed", recorded)
    torch.manual_seed(0)
    net = Categories()
    nn.init.zeros_(net.smooth.weight)
    analysed(net)
    x = torch.from_numpy(X).double()
    assert moved
    for each in moved:
        assert bool((each[:, 0] != x[:, 0]).all())
        assert torch.equal(each[:, 1], x[:, 1])


def test_an_input_on_a_threshold_that_is_used_as_a_number_widens_the_enclosure_and_the_advice_helps() -> None:
    torch.manual_seed(0)
    net = Threshold()
    on, off = analysed(net), analysed(net, X + np.float32(0.01))
    advice = next(warning.message for warning in on.warnings if warning.code == "enclosure_open")
    assert "move inputs that lie exactly on a threshold" in advice
    assert on.enclosure is not None
    assert on.enclosure.lambda_max.lower <= largest_eigenvalue(net) <= on.enclosure.lambda_max.upper
    assert "enclosure_open" not in [warning.code for warning in off.warnings]


class Domain(nn.Module):
    """Logits that are defined only where a weight is exactly 1."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2, 3)
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("factors", torch.tensor([float("nan"), 1.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.sin(x)) * self.get_buffer("factors")[(self.scale == 1).long()]  # type: ignore[no-any-return]


@pytest.mark.parametrize("basis", ["full", "three_vectors"])
def test_a_model_that_is_undefined_nearby_is_refused_by_name(basis: str) -> None:
    options = wsb.Options.model_validate({"dtype": "float64", "basis": basis})
    with pytest.raises(wsb.ResourceError, match="rounding cannot be measured") as caught:
        wsb.analyze(wsb.from_module(Domain().double()), wsb.Batch(X, Y), options)
    assert caught.value.code == "overflow"
