"""What a new operator takes: its kernel in one file, and for an activation of MLPs its derivatives in another."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from wsb_engine.curvature.closed_form import activations
from wsb_engine.curvature.tracing import operators as traits
from wsb_engine.curvature.tracing.smoothness import nonsmooth_operators
from wsb_engine.formats.graph import mlp
from wsb_engine.formats.graph.operators import registry
from wsb_engine.formats.graph.operators.registry import Call, operator
from wsb_engine.formats.load import load_model
from wsb_engine.model import LogitModel


@pytest.fixture(autouse=True)
def _own_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_TABLE", {name: list(entries) for name, entries in registry._TABLE.items()})
    monkeypatch.setattr(traits, "_TABLE", dict(traits._TABLE))


@pytest.fixture
def between_layers(build, weights) -> Callable[[str], LogitModel]:
    """A network of two layers with an operator between them, read from a file."""

    def make(name: str) -> LogitModel:
        nodes = [
            build.node("Gemm", ["x", "W1", "b1"], ["h"], transB=1),
            build.node(name, ["h"], ["a"]),
            build.node("Gemm", ["a", "W2", "b2"], ["z"], transB=1),
        ]
        return load_model(build.bytes(nodes, weights(W1=(5, 4), b1=(5,), W2=(3, 5), b2=(3,)))).resolve()

    return make


def kinks(model: LogitModel) -> tuple[str, ...]:
    parameters = {name: tensor.double() for name, tensor in model.parameters.items()}
    return nonsmooth_operators(model.function, parameters, {"x": torch.randn(6, 4, dtype=torch.float64)})


def test_an_operator_takes_its_kernel_alone(between_layers) -> None:
    @operator("Notch", activation=True, elementwise=True)
    def notch(call: Call, x: Tensor) -> Tensor:
        return torch.where(x > 0.3, x, 0.5 * x)

    model = between_layers("Notch")
    assert model.activations == ("notch",)
    assert model.mlp is None
    assert kinks(model) == ("Notch",)
    x = np.linspace(-2, 2, 8).reshape(2, 4)
    W1, b1, W2, b2 = (model.parameters[name].double().numpy() for name in ("W1", "b1", "W2", "b2"))
    h = x @ W1.T + b1
    doubles = {name: tensor.double() for name, tensor in model.parameters.items()}
    z = model.function(doubles, {"x": torch.from_numpy(x)})
    np.testing.assert_allclose(z, np.where(h > 0.3, h, 0.5 * h) @ W2.T + b2)


def test_an_activation_takes_its_kernel_and_its_derivatives(between_layers, monkeypatch: pytest.MonkeyPatch) -> None:
    @operator("Sine", activation=True, elementwise=True)
    def sine(call: Call, x: Tensor) -> Tensor:
        return torch.sin(x)

    assert between_layers("Sine").mlp is None
    monkeypatch.setitem(activations._TABLE, "sine", lambda h, _: (h.sin(), h.cos(), -h.sin()))
    monkeypatch.setattr(mlp, "KINDS", frozenset(activations._TABLE))
    model = between_layers("Sine")
    assert model.mlp is not None
    assert [each.kind for each in model.mlp.activations] == ["sine"]
    assert model.activations == ("sine",)
    assert kinks(model) == ()


def test_an_operator_that_is_not_elementwise_makes_no_activation(between_layers) -> None:
    @operator("Smoothed")
    def smoothed(call: Call, x: Tensor) -> Tensor:
        return torch.tanh(x)

    model = between_layers("Smoothed")
    assert model.mlp is None
    assert model.activations == ()


@pytest.mark.parametrize(
    ("name", "expected"),
    [("LeakyReLU", "leaky_relu"), ("GELU", "gelu"), ("tanh", "tanh"), ("Linear", None), ("Conv2d", None)],
)
def test_classes_of_modules_are_found_by_their_names(name: str, expected: str | None) -> None:
    assert traits.activation_named(name) == expected
