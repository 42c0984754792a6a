"""Constants of a module's code where weights are: parameters if freezing made them, else left out and named."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.forms import full
from torch import Tensor, nn
from torch.nn import functional as F

import wsb_engine as wsb

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")

X = torch.randn(6, 5, generator=torch.Generator().manual_seed(1)).double()
Y = torch.arange(6) % 3
PROJECTION = torch.randn(3, 4, generator=torch.Generator().manual_seed(2)).double()


class Projected(nn.Module):
    """A projection that no optimiser sees, between two layers."""

    def __init__(self, *, learned: bool = False) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 4), nn.Linear(3, 3)
        self.projection = nn.Parameter(PROJECTION.clone()) if learned else PROJECTION

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.last(torch.tanh(F.linear(torch.tanh(self.first(x)), self.projection)))
        return z


class Literal(nn.Module):
    """Writes the numbers in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 2), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        numbers = torch.tensor([[0.3, -0.2], [0.5, 0.1], [-0.7, 0.4]], dtype=torch.float64)
        z: Tensor = self.last(torch.tanh(F.linear(torch.tanh(self.first(x)), numbers)))
        return z


class Alone(nn.Module):
    """Has nothing but a constant."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x[:, :4], PROJECTION)


class Around(nn.Module):
    """Another module with layers before and after it."""

    def __init__(self, body: nn.Module, *, layers: bool = True) -> None:
        super().__init__()
        self.body = body
        self.before: nn.Module = nn.Linear(5, 5) if layers else nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.body(torch.tanh(self.before(x)))
        return z


def frozen(module: nn.Module) -> nn.Module:
    """A module as it comes out of a file, which torch lets be part of another one."""
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.freeze(torch.jit.script(module)), buffer)
    buffer.seek(0)
    return torch.jit.load(buffer)  # type: ignore[no-any-return, no-untyped-call]


def analysed(data: bytes, *parameters: str) -> wsb.Report:
    options = wsb.Options(spectrum="dense", moments="none", parameters=parameters or ("*",))
    classifier = wsb.load_model(data)
    return wsb.analyze(classifier, wsb.Batch({classifier.inputs[0].name: X.numpy()}, Y.numpy()), options)


def check(report: wsb.Report, hessian: Tensor) -> None:
    assert report.model.parameters.count == len(hessian)
    assert report.spectrum is not None
    assert report.spectrum.eigenvalues[0] == pytest.approx(float(torch.linalg.eigvalsh(hessian)[-1]), rel=1e-9)


@pytest.mark.parametrize(
    ("make", "way", "shape"),
    [(Projected, "traced", "[3, 4]"), full(Literal, "traced", "[3, 2]"), (Literal, "scripted", None)],
)
def test_a_constant_among_parameters_is_left_out_and_named(
    make: Callable[[], nn.Module], way: str, shape: str | None, randomised: Any, export: Any, eager_hessian: Any
) -> None:
    module = randomised(make())
    report = analysed(export(way, module, X[:2]))
    check(report, eager_hessian(module, X, Y))
    assert not report.messages("derived_parameters")
    if shape is not None:  # a script makes the tensor anew, from numbers
        (message,) = report.messages("left_out_parameters")
        assert f"linear_0.weight {shape}" in message
        assert [tensor.name for tensor in report.model.parameters.left_out or ()] == ["linear_0.weight"]


def test_a_constant_can_be_included_by_name(randomised: Any, traced: Any, eager_hessian: Any) -> None:
    data = traced(randomised(Projected()), X[:2])
    learned = randomised(Projected(learned=True))
    learned.load_state_dict(randomised(Projected()).state_dict() | {"projection": PROJECTION})
    report = analysed(data, "*", "linear_0.weight")
    check(report, eager_hessian(learned, X, Y))
    assert not report.messages("left_out_parameters")
    assert not report.model.parameters.left_out


def test_constants_count_if_forward_uses_no_parameter(traced: Any) -> None:
    report = analysed(traced(Alone(), X[:2]))
    assert [tensor.name for tensor in report.model.parameters.tensors] == ["linear_0.weight"]
    (message,) = report.messages("derived_parameters")
    assert "no parameter that the module declares" in message


@pytest.mark.parametrize("way", [full("traced"), "scripted"])
def test_the_constants_of_a_frozen_submodule_are_named_and_can_be_included(
    way: str, randomised: Any, export: Any, eager_hessian: Any
) -> None:
    body = randomised(Projected(learned=True))
    whole = randomised(Around(body))
    around = Around(frozen(body))
    around.before = whole.before
    data = export(way, around, X[:2])
    report = analysed(data)
    names = [tensor.name for tensor in report.model.parameters.left_out or ()]
    assert [tensor.name for tensor in report.model.parameters.tensors] == ["before.weight", "before.bias"]
    assert len(names) == 5
    (message,) = report.messages("left_out_parameters")
    assert all(name in message for name in names)
    assert "submodule was frozen" in message
    check(analysed(data, "*", *names), eager_hessian(whole, X, Y))


def test_the_constants_of_a_frozen_submodule_count_if_nothing_else_does(
    randomised: Any, export: Any, eager_hessian: Any
) -> None:
    body = randomised(Projected(learned=True))
    data = export("scripted", Around(frozen(body), layers=False))
    report = analysed(data)
    check(report, eager_hessian(Around(body, layers=False), X, Y))
    assert "submodule was frozen" in report.messages("derived_parameters")[0]


def test_what_is_left_out_of_a_frozen_module_can_be_included(randomised: Any, export: Any, eager_hessian: Any) -> None:
    class Distances(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.points = nn.Linear(5, 4), nn.Parameter(torch.zeros(3, 4))

        def forward(self, x: Tensor) -> Tensor:
            return -(torch.tanh(self.first(x)).unsqueeze(1) - self.points).square().sum(2)

    module = randomised(Distances())
    data = export("frozen trace", module, X[:2])
    (name,) = wsb.load_model(data).resolve().left_out
    check(analysed(data, "*", name), eager_hessian(module, X, Y))
