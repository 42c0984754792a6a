"""Exports of today's exporters: the parameters found are the module's, whatever was folded and however many samples."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx.helper import make_node as node
from support.forms import full
from torch import Tensor, nn

import wsb_engine as wsb
from wsb_engine import load_model

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*is deprecated:DeprecationWarning")


class Tokens(nn.Module):
    """A class token expanded over the samples, learned positions, a scaled residual, attention with a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 4)
        self.token = nn.Parameter(torch.zeros(1, 1, 4))
        self.positions = nn.Parameter(torch.zeros(1, 4, 4))
        self.qkv = nn.Linear(4, 12)
        self.gamma = nn.Parameter(torch.zeros(4))
        self.last = nn.Linear(4, 3)
        self.register_buffer("mask", torch.full((4, 4), -100.0).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), self.embed(x)], dim=1) + self.positions
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        scores = q @ k.transpose(1, 2) / 2 + self.mask
        return self.last((x + self.gamma * (scores.softmax(-1) @ v))[:, 0])


class Relative(nn.Module):
    """Attention with a learned bias by relative position, distances, a learned temperature and rotations."""

    def __init__(self) -> None:
        super().__init__()
        self.qk = nn.Linear(4, 8)
        self.bias = nn.Parameter(torch.zeros(7, 2))
        self.temperature = nn.Parameter(torch.zeros(2, 1, 1))
        self.last = nn.Linear(4, 3)
        self.register_buffer("frequencies", 100.0 ** -torch.arange(1.0))

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[1]
        position = torch.arange(n)
        distance = position[:, None] - position
        angle = position[:, None].float() * self.frequencies
        q, k = (part.reshape(-1, n, 2, 2).transpose(1, 2) for part in self.qk(x).chunk(2, dim=-1))
        q, k = (
            torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], dim=-1)
            for a, b in (each.chunk(2, dim=-1) for each in (q, k))
        )
        scores = q @ k.transpose(-1, -2) * self.temperature.exp()
        scores = scores + self.bias[distance + 3].permute(2, 0, 1)
        scores = scores - torch.tensor([0.5, 0.25])[:, None, None] * distance.abs()
        return self.last((scores.softmax(-1) @ x[:, None]).mean(dim=(1, 2)))


class Tied(nn.Module):
    """One weight for two layers, and as the table of an embedding; a learned scalar and first state."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.recurrent = nn.GRU(4, 4, batch_first=True)
        self.state = nn.Parameter(torch.zeros(1, 1, 4))
        self.last = nn.Linear(4, 7, bias=False)
        self.last.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.second(torch.tanh(self.first(self.embed(x))))
        h, _ = self.recurrent(h, self.state.expand(1, len(x), 4).contiguous())
        return self.last(torch.tanh(h.mean(1)))


def drawn(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data = 0.4 * torch.randn(parameter.shape, generator=generator)
    return module


def numbers(samples: int, *shape: int) -> Tensor:
    return torch.randn(samples, *shape, generator=torch.Generator().manual_seed(1))


class LookedUp(nn.Module):
    """Tables that an exporter looks up itself: one kind for all tokens, and the first positions."""

    def __init__(self) -> None:
        super().__init__()
        self.word, self.kind, self.position = nn.Embedding(7, 4), nn.Embedding(2, 4), nn.Embedding(12, 4)
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        kind, position = torch.zeros(x.shape, dtype=torch.long), torch.arange(x.shape[1])[None]
        return self.last(torch.tanh(self.word(x) + self.kind(kind) + self.position(position)).mean(1))


def tokens(samples: int) -> Tensor:
    return torch.randint(0, 7, (samples, 3), generator=torch.Generator().manual_seed(1))


MODULES: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Tensor], int]] = {
    "tokens": (Tokens, lambda n: numbers(n, 3, 3), 0),
    "relative": (Relative, lambda n: numbers(n, 4, 4), 0),
    "tied": (Tied, tokens, 0),
    "looked up": (LookedUp, tokens, 4 * (1 + 9)),
}
"""Module, example of n samples, and how many numbers of its tables no sample uses."""


@pytest.fixture(scope="module")
def exported(export: Any) -> Callable[..., bytes]:
    """A module of ``MODULES`` as the exporter writes it with so many samples: several tests look at the same file."""

    @functools.cache
    def run(kind: str, samples: int, *, dynamo: bool = True) -> bytes:
        make, data, _ = MODULES[kind]
        return export(drawn(make()), data(samples), dynamo=dynamo, opset=18)  # type: ignore[no-any-return]

    return run


@pytest.mark.parametrize(
    ("kind", "exporter", "examples"),
    [
        ("tokens", "dynamo", (1, 2)),
        ("relative", "legacy", (2,)),
        *(full(kind, "dynamo", (1, 2, 4)) for kind in MODULES),
        *(full(kind, "legacy", (2,)) for kind in ("tokens", "tied", "looked up")),
    ],
)
def test_the_samples_of_the_example_change_nothing(
    kind: str, exporter: str, examples: tuple[int, ...], exported: Any, logits: Any
) -> None:
    make, data, unused = MODULES[kind]
    module, x, dynamo = drawn(make()), data(5), exporter == "dynamo"
    expected = module.double()(x.double() if x.is_floating_point() else x).detach()
    # The older exporter looks nothing up.
    counts = sum(parameter.numel() for parameter in module.parameters()) - unused * dynamo
    names = set()
    for samples in examples:
        model = load_model(exported(kind, samples, dynamo=dynamo)).resolve()
        assert sum(tensor.numel() for tensor in model.parameters.values()) == counts, list(model.parameters)
        torch.testing.assert_close(logits(model, x), expected, rtol=1e-5, atol=1e-6)
        # The exponential of the learned temperature is folded.
        assert [code for code, _ in model.warnings] == ["derived_parameters"] * (dynamo and kind == "relative")
        assert len(model.tied) == 2 * (kind == "tied")
        names.add(tuple(model.parameters))
    assert len(names) == 1


@pytest.mark.slow
def test_what_was_folded_from_one_parameter_has_its_name(exported: Any) -> None:
    model = load_model(exported("tokens", 2)).resolve()
    assert {name for name, _ in Tokens().named_parameters()} == set(model.parameters)
    assert "mask" in model.left_out


def stripped(data: bytes) -> bytes:
    """The same file without metadata, as tools that rewrite files leave it."""
    model = onnx.load_from_string(data)
    del model.graph.metadata_props[:]
    for value in model.graph.value_info:
        del value.metadata_props[:]
    return model.SerializeToString()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tokens", full("relative"), "tied", "looked up"])
def test_a_file_without_metadata_is_read_by_its_structure(kind: str, exported: Any) -> None:
    make, _, unused = MODULES[kind]
    model = load_model(stripped(exported(kind, 2))).resolve()
    counts = sum(parameter.numel() for parameter in make().parameters()) - unused
    assert sum(tensor.numel() for tensor in model.parameters.values()) == counts, list(model.parameters)


def test_metadata_that_names_no_parameter_leaves_none(exported: Any) -> None:
    model = onnx.load_from_string(exported("tokens", 2))
    for value in model.graph.value_info:
        for entry in value.metadata_props:
            entry.value = entry.value.replace("PARAMETER", "BUFFER")
    for entry in model.graph.metadata_props:
        entry.value = entry.value.replace("PARAMETER", "BUFFER")
    with pytest.raises(wsb.ModelError) as caught:
        load_model(model.SerializeToString())
    assert caught.value.code == "model_no_parameters"


def test_equal_tensors_of_other_names_are_named_and_counted_twice(build: Any, weights: Any) -> None:
    stored = weights(a=(4, 4), v=(4, 3))
    nodes = [
        node("MatMul", ["x", "a"], ["h"]),
        node("Tanh", ["h"], ["g"]),
        node("MatMul", ["g", "b"], ["i"]),
        node("MatMul", ["i", "v"], ["z"]),
    ]
    model = load_model(build.bytes(nodes, {**stored, "b": stored["a"]})).resolve(head="logits")
    assert list(model.parameters) == ["a", "v", "b"]
    assert [code for code, _ in model.warnings] == ["tied_copies"]
    assert "'a' and 'b'" in model.warnings[0][1]


def test_ones_and_zeros_are_no_copies(build: Any, weights: Any) -> None:
    same = {name: np.ones(5, np.float32) for name in ("g", "s")}
    nodes = [
        node("MatMul", ["x", "w"], ["h"]),
        node("LayerNormalization", ["h", "g", "b"], ["a"]),
        node("LayerNormalization", ["a", "s", "c"], ["e"]),
        node("MatMul", ["e", "v"], ["z"]),
    ]
    zeros = {name: np.zeros(5, np.float32) for name in ("b", "c")}
    model = load_model(build.bytes(nodes, weights(w=(4, 5), v=(5, 3)) | same | zeros)).resolve(head="logits")
    assert len(model.parameters) == 6
    assert model.warnings == ()


@pytest.mark.parametrize("operator", ["LSTM", "GRU"])
@pytest.mark.parametrize("absent", [0, 1, None])
def test_a_second_bias_that_is_zero_is_no_parameter(
    operator: str, absent: int | None, build: Any, weights: Any, logits: Any
) -> None:
    gates = 4 if operator == "LSTM" else 3
    stored = weights(w=(1, gates * 2, 4), r=(1, gates * 2, 2), b=(1, gates * 4), v=(2, 3))
    if absent is not None:
        stored["b"][:, absent * gates * 2 : (absent + 1) * gates * 2] = 0
    nodes = [
        node(operator, ["x", "w", "r", "b"], ["", "h"], hidden_size=2),
        node("Squeeze", ["h", "first"], ["s"]),
        node("MatMul", ["s", "v"], ["z"]),
    ]
    data = build.bytes(nodes, {**stored, "first": np.array([0])}, inputs={"x": [5, "n", 4]})
    classifier = load_model(data)
    assert classifier.parameters["b"].numel() == gates * (4 if absent is None else 2)
    model = classifier.resolve(head="logits")
    assert set(model.parameters) == {"w", "r", "b", "v"}
    assert model.reference is not None
    x = numbers(5, 3, 4)
    np.testing.assert_allclose(logits(model, x), model.reference({"x": x.numpy()}), rtol=1e-5, atol=1e-6)


def test_a_constant_can_be_included_by_its_name(build: Any, weights: Any) -> None:
    nodes = [
        node("Sub", ["x", "mean"], ["c"]),
        node("MatMul", ["c", "w"], ["h"]),
        node("Mul", ["h", "slope"], ["z"]),
    ]
    constants = {"mean": np.float32([1, 2, 3, 4]), "slope": np.float32(0.5)}
    classifier = load_model(build.bytes(nodes, weights(w=(4, 3)) | constants))
    assert list(classifier.parameters) == ["w"]
    batch = wsb.Batch(numbers(6, 4).numpy(), np.array([0, 1, 2, 0, 1, 2]))

    def analysed(*patterns: str) -> wsb.Report:
        return wsb.analyze(classifier, batch, wsb.Options(parameters=patterns, head="logits", spectrum="dense"))

    assert [each.name for each in analysed("*").model.parameters.tensors] == ["w"]
    assert [each.name for each in analysed("*").model.parameters.left_out or []] == ["mean"]
    report = analysed("*", "slope")
    assert [each.name for each in report.model.parameters.tensors] == ["w", "slope"]
    assert report.spectrum is not None
    assert [each.name for each in analysed("mea?").model.parameters.tensors] == ["mean"]
    w, slope = (
        torch.tensor(classifier_value).double() for classifier_value in (classifier.parameters["w"].numpy(), 0.5)
    )
    x, y = torch.as_tensor(numbers(6, 4)).double() - torch.tensor([1.0, 2, 3, 4]), torch.tensor([0, 1, 2, 0, 1, 2])

    def loss(flat: Tensor) -> Tensor:
        return nn.functional.cross_entropy(x @ flat[:12].reshape(4, 3) * flat[12], y)

    hessian = torch.func.hessian(loss)(torch.cat([w.reshape(-1), slope.reshape(1)]))
    np.testing.assert_allclose(
        report.spectrum.eigenvalues, torch.linalg.eigvalsh(hessian).flip(0), rtol=1e-9, atol=1e-12
    )
    with pytest.raises(wsb.OptionsError) as caught:
        analysed("*", "scale")
    assert caught.value.code == "parameter_pattern_unmatched"
    assert "'slope'" in caught.value.advice
    assert math.isfinite(report.loss.value)
