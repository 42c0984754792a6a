"""Perceptrons are recognised however they are written, so that the closed form applies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from wsb_engine import load_model
from wsb_engine.curvature.closed_form.activations import derivatives
from wsb_engine.curvature.tracing.smoothness import nonsmooth_operators

X = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0)).double()


class Written(nn.Module):
    """A perceptron whose layers, activation and flattening are given as functions."""

    def __init__(self, flatten: Callable[[Tensor], Tensor], layer: Any, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.w1, self.b1 = nn.Parameter(torch.zeros(4, 6)), nn.Parameter(torch.zeros(4))
        self.w2, self.b2 = nn.Parameter(torch.zeros(3, 4)), nn.Parameter(torch.zeros(3))
        self.flatten, self.layer, self.activation = flatten, layer, activation

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.activation(self.layer(self.flatten(x), self.w1, self.b1))
        return self.layer(hidden, self.w2, self.b2)  # type: ignore[no-any-return]


FLATTENINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "flatten": lambda x: torch.flatten(x, 1),
    "view": lambda x: x.view(x.size(0), -1),
    "view of a fixed width": lambda x: x.view(-1, 6),
    "reshape": lambda x: x.reshape(x.shape[0], 6),
    "scaled": lambda x: (x.flatten(1) - 0.5) / 2.0,
}
LAYERS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "linear": functional.linear,
    "addmm": lambda x, w, b: torch.addmm(b, x, w.t()),
    "matmul": lambda x, w, b: torch.matmul(x, w.t()) + b,
    "matmul, transposed by axes": lambda x, w, b: b + x @ w.transpose(0, 1),
    "without bias": lambda x, w, b: x @ w.T,
}
ACTIVATIONS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "tanh": ("tanh", torch.tanh),
    "sigmoid": ("sigmoid", torch.sigmoid),
    "softplus": ("softplus", functional.softplus),
    "gelu": ("gelu", functional.gelu),
    "gelu by tanh": ("gelu_tanh", lambda x: functional.gelu(x, approximate="tanh")),
    "gelu by erf": ("gelu", lambda x: x * 0.5 * (1.0 + torch.erf(x / 1.4142135623730951))),
    "silu": ("silu", functional.silu),
    "silu in two": ("silu", lambda x: x * torch.sigmoid(x)),
    "elu": ("elu", functional.elu),
}


def _assert_same_network(model: Any, module: nn.Module, logits: Any) -> None:
    assert model.mlp is not None
    values = dict(model.parameters)
    a = model.mlp.features({"x": X})
    for index, layer in enumerate(model.mlp.layers):
        weight = values[layer.weight]
        h = a @ (weight if layer.transposed else weight.T)
        h = h if layer.bias is None else h + values[layer.bias].reshape(-1)
        a = h if index == len(model.mlp.activations) else derivatives(model.mlp.activations[index], h)[0]
    torch.testing.assert_close(a, module(X), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(logits(model, X), module(X), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("flatten", FLATTENINGS)
@pytest.mark.parametrize("layer", LAYERS)
def test_a_perceptron_is_found_however_its_layers_are_written(
    flatten: str, layer: str, randomised: Any, traced: Any, logits: Any
) -> None:
    module = randomised(Written(FLATTENINGS[flatten], LAYERS[layer], torch.tanh))
    model = load_model(traced(module, X)).resolve()
    _assert_same_network(model, module, logits)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_recognised_by_what_it_computes(name: str, randomised: Any, traced: Any, logits: Any) -> None:
    kind, activation = ACTIVATIONS[name]
    module = randomised(Written(FLATTENINGS["flatten"], functional.linear, activation))
    model = load_model(traced(module, X)).resolve()
    assert model.mlp is not None
    assert [each.kind for each in model.mlp.activations] == [kind]
    assert model.activations == (kind,)
    assert nonsmooth_operators(model.function, model.parameters, {"x": X}) == ()
    _assert_same_network(model, module, logits)


OTHERS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "selu": functional.selu,
    "elu with another alpha": lambda x: functional.elu(x, alpha=0.5),
    "sharp softplus": lambda x: functional.softplus(x, beta=3.0),
    "softmax": lambda x: torch.softmax(x, 1),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_function_between_the_layers_makes_no_perceptron(
    name: str, randomised: Any, traced: Any, logits: Any
) -> None:
    module = randomised(Written(FLATTENINGS["flatten"], functional.linear, OTHERS[name]))
    model = load_model(traced(module, X)).resolve()
    assert model.mlp is None or nonsmooth_operators(model.function, model.parameters, {"x": X})
    torch.testing.assert_close(logits(model, X), module(X), rtol=1e-9, atol=1e-9)


def test_a_weight_used_twice_is_one_parameter_and_tied(randomised: Any, traced: Any, scripted: Any) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(3, 3)
            self.second = nn.Linear(3, 3)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.second(torch.tanh(self.first(x)))  # type: ignore[no-any-return]

    module = randomised(Tied())
    for data in (scripted(module), traced(module, X[:, 0])):
        model = load_model(data).resolve()
        assert model.tied == ("first.weight",)
        assert list(model.parameters) == ["first.weight", "first.bias", "second.bias"]
        assert model.mlp is None
