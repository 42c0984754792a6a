"""Exported programs against the module that they were made from, by double backward in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.eager import eager_hessian, randomised
from support.forms import crossed, full
from support.pt2 import exported
from torch import Tensor, nn
from torch.nn import functional

import wsb_engine as wsb

SAMPLES = 6
Y = torch.arange(SAMPLES) % 3


def perceptron() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(6, 4), nn.Tanh(), nn.Dropout(), nn.Linear(4, 4), nn.SiLU(), nn.Linear(4, 3)
    )


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1, bias=False),
        nn.BatchNorm2d(2),
        nn.GELU(approximate="tanh"),
        nn.AvgPool2d(2),
        nn.Conv2d(2, 3, 2),
        nn.GroupNorm(1, 3),
        nn.Softplus(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(3, 3),
    )


class Encoder(nn.Module):
    """Patches, a class token expanded over the batch, positions, a transformer layer."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 4, 2, 2)
        self.cls = nn.Parameter(torch.zeros(1, 1, 4))
        self.positions = nn.Parameter(torch.zeros(1, 5, 4))
        self.layer = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 5, batch_first=True, activation="gelu"), 1)
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + self.positions
        return {"logits": self.last(self.layer(x)[:, 0])}


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.layer = kind(3, 2, batch_first=True, **options)
        self.last = nn.Linear(4 if self.layer.bidirectional else 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layer(x)[0][:, -1])  # type: ignore[no-any-return]


class Tokens(nn.Module):
    """Integers in, a mask without gradients, buffers and constants, normalisations, tied weights."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.norms = nn.ModuleList([nn.RMSNorm(4), nn.LayerNorm(4)])
        self.register_buffer("table", torch.rand(3, 4), persistent=False)
        self.scale = torch.tensor([1.0, 0.5, 2.0, 1.5])
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            mask = torch.full((3, 3), float("-inf")).triu(1)
        x = self.norms[0](self.embed(x) * self.scale + self.table)
        query = self.first(x)
        x = functional.scaled_dot_product_attention(query, self.second(x), x, attn_mask=mask.to(x.dtype))
        return self.last(self.norms[1](x).mean(1))  # type: ignore[no-any-return]


IMAGES = torch.randn(SAMPLES, 1, 4, 4, generator=torch.Generator().manual_seed(1)).double()
SEQUENCES = torch.randn(SAMPLES, 3, 3, generator=torch.Generator().manual_seed(2)).double()
IDS = torch.arange(3 * SAMPLES).reshape(SAMPLES, 3) % 7
NETWORKS: dict[str, tuple[Any, Tensor]] = {
    "perceptron": (perceptron, SEQUENCES[:, :2]),
    "convolutional": (convolutional, IMAGES),
    "encoder": (Encoder, IMAGES),
    "lstm": (lambda: Recurrent(nn.LSTM, bidirectional=True), SEQUENCES),
    "gru": (lambda: Recurrent(nn.GRU, num_layers=2), SEQUENCES),
    "rnn": (lambda: Recurrent(nn.RNN, nonlinearity="tanh"), SEQUENCES),
    "tokens": (Tokens, IDS),
}
WAYS: dict[str, tuple[int, dict[str, bool]]] = {
    "one sample": (1, {}),
    "two samples": (2, {}),
    "eight samples": (8, {}),
    "free": (4, {"free": True}),
    "decomposed": (2, {"decomposed": True}),
    "decomposed, free": (4, {"decomposed": True, "free": True}),
}
"""Samples of the example, and how it is exported."""


def _rows(x: Tensor, count: int) -> Tensor:
    return torch.cat([x, x])[:count]


def _archive(name: str, way: str) -> tuple[nn.Module, Tensor, bytes]:
    make, x = NETWORKS[name]
    count, options = WAYS[way]
    module = randomised(make())
    return module, x, exported(module, _rows(x, count), **options)


@pytest.mark.parametrize(
    ("name", "way"),
    [
        *crossed(("encoder", "tokens"), WAYS, keep=2),
        *crossed(("perceptron", "convolutional", "lstm", "gru", "rnn"), ("one sample", "decomposed, free"), keep=2),
    ],
)
def test_the_function_is_that_of_the_module(name: str, way: str) -> None:
    module, x, archive = _archive(name, way)
    classifier = wsb.load_model(archive)
    model = classifier.resolve()
    result = module.eval()(x)
    expected = result["logits"] if isinstance(result, dict) else result
    assert classifier.format == "pt2"
    assert {key: value.shape for key, value in classifier.parameters.items()} == {
        key: value.shape for key, value in module.named_parameters()
    }
    z = model.function(model.parameters, {classifier.inputs[0].name: x})
    torch.testing.assert_close(z, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("perceptron", "two samples"),
        full("convolutional", "one sample"),
        full("encoder", "decomposed, free"),
        full("lstm", "two samples"),
        ("tokens", "eight samples"),
    ],
)
def test_curvature_equals_that_of_the_module(name: str, way: str) -> None:
    module, x, archive = _archive(name, way)
    expected = eager_hessian(
        module.eval(), x, Y, lambda result: result["logits"] if isinstance(result, dict) else result
    )
    options = wsb.Options(spectrum="dense", enclosure=False)
    report = wsb.analyze(wsb.load_model(archive), wsb.Batch(x.numpy(), Y.numpy()), options)
    assert report.moments is not None
    assert report.spectrum is not None
    assert report.model.format == "pt2"
    assert report.model.parameters.count == len(expected)
    assert report.model.parameters.tied == (["first.weight"] if name == "tokens" else [])
    assert report.model.architecture == ("mlp" if name == "perceptron" else "general")
    assert report.moments.trace == pytest.approx(float(expected.trace()), rel=1e-9)
    assert report.moments.frobenius_squared == pytest.approx(float(expected.square().sum()), rel=1e-9)
    eigenvalues = torch.linalg.eigvalsh(expected)
    assert report.spectrum.eigenvalues[0] == pytest.approx(float(eigenvalues[-1]), rel=1e-9)
    assert report.spectrum.eigenvalues[-1] == pytest.approx(float(eigenvalues[0]), rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("way", [full("one sample"), "decomposed"])
def test_an_exported_perceptron_has_closed_form_moments(way: str) -> None:
    _, x, archive = _archive("perceptron", way)
    report = wsb.analyze(wsb.load_model(archive), wsb.Batch(x.numpy(), Y.numpy()))
    assert report.model.architecture == "mlp"
    assert report.moments is not None
    assert report.moments.method == "closed_form"
    assert report.model.activations == ["tanh", "silu"]


def test_a_file_gives_what_its_bytes_give(tmp_path: Path) -> None:
    _, x, archive = _archive("convolutional", "two samples")
    path = tmp_path / "model.pt2"
    path.write_bytes(archive)
    mapped, copied = wsb.load_model(path), wsb.load_model(archive)
    assert mapped.sha256 == copied.sha256
    for name, tensor in mapped.parameters.items():
        torch.testing.assert_close(tensor, copied.parameters[name], rtol=0, atol=0)
    path.unlink()
    assert torch.isfinite(mapped.resolve().function(mapped.parameters, {mapped.inputs[0].name: x})).all()


def test_inputs_are_declared() -> None:
    _, _, archive = _archive("tokens", "free")
    (entry,) = wsb.load_model(archive).inputs
    assert (entry.name, entry.shape, entry.dtype) == ("x", (None, 3), torch.int64)


class Halves(nn.Module):
    """A branch that depends on a size, a pass under autocast, several outputs in nested containers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor, gate: Tensor, flag: bool = True, none: None = None) -> Any:
        x = torch.cond(x.shape[0] > 3, lambda x: torch.tanh(x), lambda x: torch.sin(x), (x,))
        with torch.autocast("cpu", enabled=False):
            x = self.first(x) * gate
        left, right = x.split(2, dim=1)
        return {"features": (x, None, 3), "logits": [self.last(torch.cat([right.exp(), left], 1))]}


@pytest.mark.slow
def test_branches_containers_and_several_inputs() -> None:
    module = randomised(Halves())
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(SAMPLES, 4, generator=generator, dtype=torch.float64)
    gate = torch.rand(SAMPLES, 1, generator=generator, dtype=torch.float64)
    classifier = wsb.load_model(exported(module, x, gate, free=True))
    model = classifier.resolve(output="logits.0")
    assert [entry.name for entry in classifier.inputs] == ["x", "gate"]
    for rows in (2, SAMPLES):
        given = {"x": x[:rows], "gate": gate[:rows]}
        expected = module(**given)["logits"][0]
        torch.testing.assert_close(model.function(model.parameters, given), expected, rtol=1e-12, atol=1e-12)
