"""Traced, scripted and frozen networks against the module that they were made from."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.forms import crossed, full
from torch import Tensor, nn

import wsb_engine as wsb
from wsb_engine.curvature.tracing.smoothness import nonsmooth_operators

SAMPLES = 6


def perceptron() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(6, 4), nn.Tanh(), nn.Dropout(), nn.Linear(4, 4), nn.SiLU(), nn.Linear(4, 3)
    )


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1),
        nn.GELU(),
        nn.AvgPool2d(2),
        nn.Conv2d(2, 3, 2, stride=2),
        nn.GroupNorm(3, 3),
        nn.ELU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(3, 3),
    )


class Encoder(nn.Module):
    """A transformer over tokens; its mean is classified."""

    def __init__(self, layers: int = 1, *, norm_first: bool = False) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            4, 2, 6, batch_first=True, activation="gelu", norm_first=norm_first, dropout=0.2
        )
        self.embed = nn.Linear(3, 4)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.encoder(self.embed(x)).mean(1))  # type: ignore[no-any-return]


class Residual(nn.Module):
    """A block as torchvision writes them: normalisation by batch statistics, in place where possible, a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 2, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(2)
        self.second = nn.Conv2d(2, 2, 3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2)
        self.last = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.relu(self.norm(self.first(x)))
        out = self.second(shortcut)
        out += shortcut
        return self.last(torch.flatten(self.pool(self.relu(out)).mean([2, 3]), 1))  # type: ignore[no-any-return]


class Tokens(nn.Module):
    """Embeddings with learned positions."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.positions = nn.Parameter(torch.zeros(3, 4))
        self.norm = nn.LayerNorm(4)
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.norm(self.embed(x) + self.positions)).mean(1))  # type: ignore[no-any-return]


IMAGES = torch.randn(SAMPLES, 1, 8, 8, generator=torch.Generator().manual_seed(1)).double()
SEQUENCES = torch.randn(SAMPLES, 4, 3, generator=torch.Generator().manual_seed(2)).double()
NETWORKS: dict[str, tuple[Any, Tensor]] = {
    "perceptron": (perceptron, SEQUENCES[:, :2]),
    "convolutional": (convolutional, IMAGES),
    "encoder": (Encoder, SEQUENCES),
    "encoder, normalised first": (lambda: Encoder(norm_first=True), SEQUENCES),
    "tokens": (Tokens, torch.arange(3 * SAMPLES).reshape(SAMPLES, 3) % 7),
    "two encoders": (lambda: Encoder(2), SEQUENCES),
    "residual": (Residual, IMAGES),
}
WAYS = ("traced", "traced without gradients", "scripted", "scripted in training", "frozen", "frozen trace")
Y = torch.arange(SAMPLES) % 3


@pytest.mark.parametrize(("name", "way"), crossed(NETWORKS, WAYS, keep=4))
def test_logits_equal_those_of_the_module(name: str, way: str, randomised: Any, export: Any, logits: Any) -> None:
    make, x = NETWORKS[name]
    module = randomised(make())
    classifier = wsb.load_model(export(way, module, x[:2]))
    module.eval()
    entry = classifier.inputs[0].name
    assert classifier.format == "torchscript"
    torch.testing.assert_close(logits(classifier.resolve(), x, names=(entry,)), module(x), rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "way"),
    [
        *crossed(("perceptron", "convolutional", "encoder", "tokens"), WAYS, keep=3),
        *(full("two encoders", way) for way in WAYS),
    ],
)
def test_curvature_equals_that_of_the_module(
    name: str, way: str, randomised: Any, export: Any, eager_hessian: Any
) -> None:
    make, x = NETWORKS[name]
    module = randomised(make())
    classifier = wsb.load_model(export(way, module, x[:2]))
    expected = eager_hessian(module.eval(), x, Y)
    options = wsb.Options(spectrum="dense", enclosure=False)
    report = wsb.analyze(classifier, wsb.Batch(x.numpy(), Y.numpy()), options)
    assert report.moments is not None
    assert report.spectrum is not None
    assert report.model.parameters.count == len(expected)
    assert report.model.parameters.tied == []
    assert report.model.parity is None
    assert report.model.smooth
    assert report.model.architecture == ("mlp" if name == "perceptron" else "general")
    assert report.moments.trace == pytest.approx(float(expected.trace()), rel=1e-9)
    assert report.moments.frobenius_squared == pytest.approx(float(expected.square().sum()), rel=1e-9)
    eigenvalues = torch.linalg.eigvalsh(expected)
    assert report.spectrum.eigenvalues[0] == pytest.approx(float(eigenvalues[-1]), rel=1e-9)
    assert report.spectrum.eigenvalues[-1] == pytest.approx(float(eigenvalues[0]), rel=1e-9)


@pytest.mark.parametrize("make", [Tokens, full(Encoder)])
def test_parameters_keep_the_names_of_the_module(make: type[nn.Module], randomised: Any, scripted: Any) -> None:
    module = randomised(make())
    classifier = wsb.load_model(scripted(module))
    assert list(classifier.parameters) == [name for name, _ in module.named_parameters()]


def test_parameters_of_a_frozen_module_are_named_after_their_layers(randomised: Any, export: Any) -> None:
    classifier = wsb.load_model(export("frozen", randomised(convolutional())))
    assert list(classifier.parameters) == [
        f"{layer}.{slot}" for layer in ("conv_0", "conv_1", "group_norm_0", "linear_0") for slot in ("weight", "bias")
    ]


def test_a_kink_is_reported(randomised: Any, scripted: Any) -> None:
    model = wsb.load_model(scripted(randomised(Residual()))).resolve()
    assert nonsmooth_operators(model.function, model.parameters, {"x": IMAGES}) == ("relu", "max_pool2d")
    assert model.mlp is None
    assert "norm.running_mean" not in model.parameters
