"""What exporters write, against the same network computed by torch and scikit-learn themselves."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Perceptron, RidgeClassifier, SGDClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    KBinsDiscretizer,
    MinMaxScaler,
    Normalizer,
    PolynomialFeatures,
    QuantileTransformer,
    StandardScaler,
)
from sklearn.svm import SVC, LinearSVC
from sklearn.tree import DecisionTreeClassifier
from support.forms import crossed, full
from torch import Tensor, nn

from wsb_engine import ModelError, load_model

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*is deprecated:DeprecationWarning")
RNG = np.random.default_rng(3)

ACTIVATIONS = {
    "tanh": nn.Tanh(),
    "sigmoid": nn.Sigmoid(),
    "softplus": nn.Softplus(),
    "gelu": nn.GELU(),
    "gelu_tanh": nn.GELU("tanh"),
    "silu": nn.SiLU(),
    "elu": nn.ELU(),
}


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "exporter"), crossed(ACTIVATIONS, ("dynamo-18", "legacy-13", "legacy-20"), keep=3))
def test_an_mlp_exported_by_torch_is_recognised(
    kind: str, exporter: str, export: Any, logits: Any, mlp_logits: Any
) -> None:
    dynamo, opset = exporter.startswith("dynamo"), int(exporter[-2:])
    torch.manual_seed(1)
    net = nn.Sequential(nn.Flatten(), nn.Linear(6, 5), ACTIVATIONS[kind], nn.Linear(5, 3, bias=dynamo))
    x = torch.randn(7, 2, 3)
    model = load_model(export(net, torch.zeros(1, 2, 3), dynamo=dynamo, opset=opset)).resolve()
    assert model.mlp is not None
    assert [each.kind for each in model.mlp.activations] == [kind]
    expected = net.double()(x.double()).detach()
    torch.testing.assert_close(logits(model, x), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(mlp_logits(model, x), expected, rtol=1e-6, atol=1e-6)
    assert model.reference is not None
    np.testing.assert_allclose(model.reference({"x": x.numpy()}), expected, rtol=1e-5, atol=1e-5)


class Transformer(nn.Module):
    def __init__(self, layers: int = 1) -> None:
        super().__init__()
        self.embedding = nn.Linear(3, 4)
        layer = nn.TransformerEncoderLayer(4, 2, 5, dropout=0.1, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.encoder(self.embedding(x)).mean(1))  # type: ignore[no-any-return]


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(3, 3, batch_first=True)
        self.last = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layer(x)[0][:, -1])  # type: ignore[no-any-return]


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def _convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        nn.GroupNorm(1, 3),
        nn.GELU(),
        nn.AvgPool2d(2),
        nn.Conv2d(3, 4, 3, stride=2),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (_mlp, (2, 3)),
    "convolutional": (_convolutional, (1, 8, 8)),
    "transformer": (Transformer, (4, 3)),
    "two transformers": (lambda: Transformer(2), (4, 3)),
    "recurrent": (Recurrent, (4, 3)),
}
SHORT = {
    ("convolutional", "dynamo", 18),
    ("transformer", "legacy", 13),
}
EXPORTS = [
    each if each in SHORT else full(*each) for each in product(NETWORKS, ("legacy", "dynamo"), (13, 17, 18, 20, 21, 23))
]
FREE = {
    "dynamo": {"dynamic_shapes": ({0: torch.export.Dim.DYNAMIC},)},
    "legacy": {"dynamic_axes": {"x": {0: "n"}}},
}


Loss = Callable[[tuple[Tensor, ...]], Tensor]


def _flattened(loss: Loss, values: tuple[Tensor, ...]) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    sizes = [value.numel() for value in values]

    def of_flat(theta: Tensor) -> Tensor:
        parts = zip(theta.split(sizes), values, strict=True)
        return loss(tuple(part.view_as(value) for part, value in parts))

    return of_flat, torch.cat([value.reshape(-1) for value in values])


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
    """Attention written out, without dropout."""
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
    return torch.softmax(scores if mask is None else scores + mask, dim=-1) @ v


def _layer_norm(x: Tensor, shape: Any, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * weight + bias


def _eager_hessian(network: str, net: nn.Module, x: Tensor, y: Tensor, patch: pytest.MonkeyPatch) -> Tensor:
    """torch.func.hessian of the module, with attention and layer norm written out.

    Nested function transforms of torch's own layer norm give an asymmetric, wrong second derivative, and its fused
    attention on a CPU has none. A recurrent layer has no forward mode: double backward stands in.
    """
    names = [name for name, _ in net.named_parameters()]

    def loss(values: tuple[Tensor, ...]) -> Tensor:
        z = torch.func.functional_call(net, dict(zip(names, values, strict=True)), (x,))
        return nn.functional.cross_entropy(z, y)

    before = net(x).detach()
    with patch.context() as patched:
        patched.setattr(nn.functional, "layer_norm", _layer_norm)
        patched.setattr(nn.functional, "scaled_dot_product_attention", _attention)
        of_flat, theta = _flattened(loss, tuple(value.detach() for value in net.parameters()))
        torch.testing.assert_close(of_flat(theta), nn.functional.cross_entropy(before, y), rtol=1e-12, atol=0)
        if network == "recurrent":
            return torch.autograd.functional.hessian(of_flat, theta)  # type: ignore[no-any-return]
        return torch.func.hessian(of_flat)(theta)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("network", "exporter", "opset"), EXPORTS)
def test_logits_and_curvature_of_an_exported_network_are_the_modules(
    network: str, exporter: str, opset: int, export: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, shape = NETWORKS[network]
    torch.manual_seed(0)
    net = make().eval()
    with torch.no_grad():  # equal tensors, as fresh layers have them, would be merged by the exporter
        for value in net.parameters():
            value.add_(0.3 * torch.randn_like(value))
    x, y = torch.randn(5, *shape), torch.arange(5) % 3
    free = FREE[exporter] if opset % 2 else {}
    with monkeypatch.context() as patched:
        if (exporter, opset) == ("legacy", 13):  # it knows fused attention from opset 14 on
            patched.setattr(nn.functional, "scaled_dot_product_attention", _attention)
        data = export(net, x[:2], dynamo=exporter == "dynamo", opset=opset, **free)
    model = load_model(data).resolve()

    names = list(model.parameters)
    values = tuple(model.parameters[name].double() for name in names)

    def logits(parts: tuple[Tensor, ...]) -> Tensor:
        return model.function(dict(zip(names, parts, strict=True)), {"x": x.double()})

    assert model.reference is not None
    np.testing.assert_allclose(model.reference({"x": x.numpy()}), logits(values), rtol=1e-5, atol=1e-5)
    net.double()
    torch.testing.assert_close(logits(values), net(x.double()).detach(), rtol=1e-6, atol=1e-6)
    hessian = torch.autograd.functional.hessian(
        *_flattened(lambda parts: nn.functional.cross_entropy(logits(parts), y), values)
    )
    expected = _eager_hessian(network, net, x.double(), y, monkeypatch)
    assert hessian.shape == expected.shape
    assert float(hessian.trace()) == pytest.approx(float(expected.trace()), rel=1e-6)
    assert float(hessian.square().sum()) == pytest.approx(float(expected.square().sum()), rel=1e-6)
    largest = [float(torch.linalg.eigvalsh(matrix)[-1]) for matrix in (hessian, expected)]
    assert largest[0] == pytest.approx(largest[1], rel=1e-6)


def _sklearn(model: Any, x: np.ndarray, y: np.ndarray, **options: Any) -> bytes:
    from skl2onnx import to_onnx

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a few iterations do not converge, and need not
        model.fit(x, y)
        return to_onnx(model, x[:1], options=options).SerializeToString()  # type: ignore[no-any-return]


CLASSES: dict[str, list[Any]] = {"binary": [0, 1], "binary strings": ["no", "yes"], "multiclass": [3, 5, 9]}
SKLEARN: dict[str, Callable[[], Any]] = {
    "tanh network": lambda: MLPClassifier((4, 3), activation="tanh", max_iter=5, random_state=0),
    "logistic network": lambda: MLPClassifier((4,), activation="logistic", max_iter=5, random_state=0),
    "logistic regression": LogisticRegression,
    "scaled logistic regression": lambda: make_pipeline(StandardScaler(), LogisticRegression()),
    "scaled network": lambda: make_pipeline(StandardScaler(), MLPClassifier((4,), activation="tanh", max_iter=5)),
}


@pytest.mark.parametrize(("kind", "classes", "output"), crossed(SKLEARN, CLASSES, ("zipmap", "tensor"), keep=3))
def test_a_model_of_scikit_learn_is_read_back(
    kind: str, classes: str, output: str, logits: Any, mlp_logits: Any
) -> None:
    labels = CLASSES[classes]
    x = RNG.normal(size=(40, 5)).astype(np.float32)
    y = np.array(labels)[RNG.integers(0, len(labels), 40)]
    fitted = SKLEARN[kind]()
    model = load_model(_sklearn(fitted, x, y, zipmap=output == "zipmap")).resolve()
    assert model.mlp is not None
    assert model.classes == tuple(labels)
    z = logits(model, x, "X")
    torch.testing.assert_close(mlp_logits(model, x, "X"), z)
    probabilities = z.softmax(1) if len(labels) > 2 else torch.cat([torch.sigmoid(-z), torch.sigmoid(z)], 1)
    np.testing.assert_allclose(probabilities, fitted.predict_proba(x), rtol=1e-4, atol=1e-5)
    assert model.reference is not None
    np.testing.assert_allclose(model.reference({"X": x}), z, rtol=1e-4, atol=1e-4)


SCORES: dict[str, Callable[[], Any]] = {
    "support vectors": LinearSVC,
    "support vectors through the origin": lambda: LinearSVC(fit_intercept=False),
    "ridge": RidgeClassifier,
    "ridge of polynomials": lambda: make_pipeline(PolynomialFeatures(2), RidgeClassifier()),
    "perceptron": Perceptron,
    "hinge by gradient descent": lambda: SGDClassifier(loss="hinge"),
    "squared hinge by gradient descent": lambda: make_pipeline(Normalizer(), SGDClassifier(loss="squared_hinge")),
    "perceptron of scaled features": lambda: make_pipeline(MinMaxScaler(), SGDClassifier(loss="perceptron")),
    "ridge of imputed features": lambda: make_pipeline(SimpleImputer(), StandardScaler(), RidgeClassifier()),
    "logistic regression of bins": lambda: make_pipeline(KBinsDiscretizer(3, encode="onehot-dense"), RidgeClassifier()),
}


@pytest.mark.parametrize(("kind", "classes"), crossed(SCORES, CLASSES, keep=5))
def test_scores_of_scikit_learn_are_logits(kind: str, classes: str, logits: Any) -> None:
    labels = CLASSES[classes]
    x = RNG.normal(size=(40, 5)).astype(np.float32)
    y = np.array(labels)[RNG.integers(0, len(labels), 40)]
    fitted = SCORES[kind]()
    model = load_model(_sklearn(fitted, x, y)).resolve()
    assert model.classes == tuple(labels)
    z, scores = logits(model, x, "X").numpy(), fitted.decision_function(x)
    # One decision function is the logit of the second class; some exporters write it as two scores.
    expected = scores if scores.ndim == 2 else scores[:, None]
    if expected.shape[1] == 1 and z.shape[1] == 2:
        expected = np.concatenate([-expected, expected], 1)
    np.testing.assert_allclose(z, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    assert model.reference is not None
    np.testing.assert_allclose(model.reference({"X": x}), z, rtol=1e-4, atol=1e-4 * np.abs(z).max())


def test_division_by_the_largest_element_is_that_of_the_runtime(logits: Any) -> None:
    x = RNG.normal(size=(40, 5)).astype(np.float32)
    x[1] = -np.abs(x[1])  # the largest element is negative
    x[2] = 0  # and none to divide by
    fitted = make_pipeline(Normalizer("max"), RidgeClassifier())
    model = load_model(_sklearn(fitted, x, np.arange(40) % 3)).resolve()
    assert model.reference is not None
    np.testing.assert_allclose(model.reference({"X": x}), logits(model, x, "X"), rtol=1e-4, atol=1e-4)


def test_missing_values_are_imputed(build: Any, logits: Any) -> None:
    x, w = RNG.normal(size=(6, 4)).astype(np.float32), RNG.normal(size=(4, 3)).astype(np.float32)
    x[0, 1] = x[3, 2] = np.nan
    values = [0.5, -1.0, 2.0, 3.0]
    nodes = [
        build.node(
            "Imputer", ["x"], ["a"], domain="ai.onnx.ml", imputed_value_floats=values, replaced_value_float=np.nan
        ),
        build.node("MatMul", ["a", "w"], ["z"]),
    ]
    model = load_model(build.bytes(nodes, {"w": w}, domains={"ai.onnx.ml": 1})).resolve(head="logits")
    np.testing.assert_allclose(logits(model, x), np.where(np.isnan(x), values, x) @ w, rtol=1e-5)


def test_the_quantiles_of_a_piecewise_function_are_no_parameters() -> None:
    x = RNG.normal(size=(40, 4)).astype(np.float32)
    fitted = make_pipeline(QuantileTransformer(n_quantiles=10), RidgeClassifier())
    model = load_model(_sklearn(fitted, x, np.arange(40) % 3)).resolve()
    assert sum(tensor.numel() for tensor in model.parameters.values()) == 3 * 4 + 3
    assert {"quantiles", "quantiles_neg_rev"} <= set(model.left_out)


@pytest.mark.parametrize(
    ("classifier", "advice"), [(DecisionTreeClassifier(), "piecewise constant"), (SVC(), "kernel machine")]
)
def test_what_has_no_weights_is_refused_with_the_reason(classifier: Any, advice: str) -> None:
    x = RNG.normal(size=(40, 5)).astype(np.float32)
    with pytest.raises(ModelError) as caught:
        load_model(_sklearn(classifier, x, np.arange(40) % 3))
    assert caught.value.code == "unsupported_operator"
    assert advice in caught.value.advice


def test_a_decision_function_has_one_row_of_coefficients(logits: Any) -> None:
    x = RNG.normal(size=(40, 5)).astype(np.float32)
    fitted = LinearSVC()
    model = load_model(_sklearn(fitted, x, np.arange(40) % 2)).resolve()
    assert [tuple(tensor.shape) for tensor in model.parameters.values()] == [(1, 5), (1,)]
    assert model.mlp is not None
