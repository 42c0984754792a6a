"""What exporters write, against the same network computed by torch and scikit-learn themselves."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.neural_network import MLPClassifier

from wsb_engine import load_model

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*is deprecated:DeprecationWarning")
RNG = np.random.default_rng(3)


class Net(torch.nn.Module):
    def __init__(self, activation: torch.nn.Module, *, bias: bool = True) -> None:
        super().__init__()
        self.flatten = torch.nn.Flatten()
        self.first = torch.nn.Linear(6, 5)
        self.activation = activation
        self.last = torch.nn.Linear(5, 3, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.activation(self.first(self.flatten(x))))  # type: ignore[no-any-return]


ACTIVATIONS = {
    "tanh": torch.nn.Tanh(),
    "sigmoid": torch.nn.Sigmoid(),
    "softplus": torch.nn.Softplus(),
    "gelu": torch.nn.GELU(),
    "gelu_tanh": torch.nn.GELU("tanh"),
    "silu": torch.nn.SiLU(),
    "elu": torch.nn.ELU(),
}


@pytest.mark.parametrize("kind", ACTIVATIONS)
@pytest.mark.parametrize(("dynamo", "opset"), [(True, 18), (True, 20), (False, 13), (False, 17), (False, 20)])
def test_an_mlp_exported_by_torch_is_read_back(
    kind: str, dynamo: bool, opset: int, export: Any, logits: Any, mlp_logits: Any
) -> None:
    torch.manual_seed(1)
    net = Net(ACTIVATIONS[kind], bias=dynamo)
    x = torch.randn(7, 2, 3)
    model = load_model(export(net, torch.zeros(1, 2, 3), dynamo=dynamo, opset=opset)).resolve()
    assert model.mlp is not None
    assert [each.kind for each in model.mlp.activations] == [kind]
    expected = net.double()(x.double()).detach()
    torch.testing.assert_close(logits(model, x), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(mlp_logits(model, x), expected, rtol=1e-6, atol=1e-6)
    assert model.reference is not None
    np.testing.assert_allclose(model.reference({"x": x.numpy()}), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activation", ["tanh", "logistic"])
@pytest.mark.parametrize("labels", [[0, 1], ["no", "yes"], [3, 5, 9]], ids=["binary", "binary strings", "multiclass"])
@pytest.mark.parametrize("zipmap", [True, False])
def test_an_mlp_of_scikit_learn_is_read_back(
    activation: str, labels: list[Any], zipmap: bool, logits: Any, mlp_logits: Any
) -> None:
    from skl2onnx import to_onnx

    x = RNG.normal(size=(40, 5)).astype(np.float32)
    y = np.array(labels)[RNG.integers(0, len(labels), 40)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a few iterations do not converge, and need not
        net = MLPClassifier((4, 3), activation=activation, max_iter=5, random_state=0).fit(x, y)
        data = to_onnx(net, x[:1], options={id(net): {"zipmap": zipmap}}).SerializeToString()
    model = load_model(data).resolve()
    assert model.mlp is not None
    assert model.classes == tuple(labels)
    z = logits(model, x, "X")
    torch.testing.assert_close(mlp_logits(model, x, "X"), z)
    probabilities = z.softmax(1) if len(labels) > 2 else torch.cat([torch.sigmoid(-z), torch.sigmoid(z)], 1)
    np.testing.assert_allclose(probabilities, net.predict_proba(x), rtol=1e-4, atol=1e-5)
    assert model.reference is not None
    np.testing.assert_allclose(model.reference({"X": x}), z, rtol=1e-4, atol=1e-4)
