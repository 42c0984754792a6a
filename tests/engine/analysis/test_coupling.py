"""Samples that depend on each other: found whatever the model, taken as one batch, and never where there are none."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from support.forms import crossed
from torch import Tensor, nn

import wsb_engine as wsb
from wsb_engine.analysis.coupling import grouped
from wsb_engine.model import Tensors

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")


class Coupled(nn.Module):
    """Two layers with something between them that looks at the whole batch."""

    def __init__(self, mix: Callable[[Tensor], Tensor], features: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.mix = nn.Linear(features, 4), nn.Linear(4, 3), mix

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.second(self.mix(torch.tanh(self.first(x))))
        return z


class ZeroBranch(nn.Module):
    """Attention over the batch whose output projection starts at zero: its logits show nothing yet."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 3)
        self.out = nn.Linear(4, 4, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        z: Tensor = self.second(h + self.out(torch.softmax(h @ h.T, dim=1) @ h))
        return z


MIXTURES: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda h: h - h.mean(0),
    "statistics": lambda h: (h - h.mean(0)) / (h.var(0, unbiased=False) + 1e-5).sqrt(),
    "attention": lambda h: torch.softmax(h @ h.T, dim=1) @ h,
    "neighbour": lambda h: h + 0.5 * h.roll(1, 0),
    "first row": lambda h: h - h[:1],
    "weakly": lambda h: h + 1e-5 * h.mean(0),
    "running sum": lambda h: h + 0.01 * h.cumsum(0),
    "position": lambda h: h * (1 + 0.1 * torch.arange(len(h), dtype=h.dtype)[:, None].cos()),
}


def data(samples: int, features: int = 3) -> wsb.Batch:
    rng = np.random.default_rng(samples)
    return wsb.Batch(rng.normal(size=(samples, features)), rng.integers(0, 3, samples))


def codes(report: wsb.Report) -> list[str]:
    return [warning.code for warning in report.warnings]


def whole_batch(module: nn.Module, batch: wsb.Batch) -> float:
    """λ_max by double backward over the whole batch."""
    module = module.double()
    names = [name for name, _ in module.named_parameters()]
    x, y = batch.x["x"], torch.from_numpy(batch.y)

    def loss(*parameters: Tensor) -> Tensor:
        z = torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), (x,))
        return nn.functional.cross_entropy(z, y)

    point = tuple(p.detach() for p in module.parameters())
    blocks = torch.autograd.functional.hessian(loss, point)
    rows = [
        torch.cat([block.reshape(p.numel(), -1) for block in row], dim=1) for p, row in zip(point, blocks, strict=True)
    ]
    H = torch.cat(rows)
    return float(torch.linalg.eigvalsh((H + H.T) / 2)[-1])


QUICK = wsb.Options(moments="none", ends="largest", relative_gap=1e-3)


@pytest.mark.parametrize(("name", "samples"), crossed(MIXTURES, (1100, 3, 9), keep=3))
def test_a_coupled_module_is_found_and_taken_as_a_whole(name: str, samples: int) -> None:
    batch, module = data(samples), Coupled(MIXTURES[name])
    report = wsb.analyze(wsb.from_module(module.double()), batch, QUICK)
    assert "samples_coupled" in codes(report)
    truth = whole_batch(module, batch)
    assert report.enclosure is not None
    end = report.enclosure.lambda_max
    assert end.lower - 1e-12 * abs(truth) <= truth <= end.upper + 1e-12 * abs(truth)
    assert report.orthogonality is report.layers is None


def test_a_coupling_that_is_switched_off_at_these_parameters_is_found() -> None:
    batch, module = data(60), ZeroBranch()
    report = wsb.analyze(wsb.from_module(module.double()), batch, QUICK)
    assert "samples_coupled" in codes(report)
    assert report.enclosure is not None
    truth = whole_batch(module, batch)
    assert report.enclosure.lambda_max.lower <= truth * (1 + 1e-12)
    assert report.enclosure.lambda_max.upper >= truth * (1 - 1e-12)


def test_a_coupled_file_is_found() -> None:
    module, batch, buffer = Coupled(MIXTURES["mean"]), data(1100), io.BytesIO()
    with torch.no_grad():
        torch.jit.save(torch.jit.trace(module, torch.zeros(2, 3), check_trace=False), buffer)
    report = wsb.analyze(wsb.load_model(buffer.getvalue()), batch, QUICK)
    assert "samples_coupled" in codes(report)
    assert report.model.architecture == "general"


def test_what_does_not_fit_as_a_whole_is_refused() -> None:
    with pytest.raises(wsb.ResourceError) as caught:
        wsb.analyze(
            wsb.from_module(Coupled(MIXTURES["attention"]).double()),
            data(3000),
            wsb.Options(moments="none", memory_limit=1 << 22),
        )
    assert caught.value.code == "samples_coupled"


@pytest.mark.slow
def test_coupled_samples_are_not_split_over_devices() -> None:
    batch, module = data(40), Coupled(MIXTURES["mean"]).double()
    one, several = (
        wsb.analyze(wsb.from_module(module), batch, QUICK.model_copy(update={"devices": devices}))
        for devices in (None, ("cpu", "cpu"))
    )
    assert "split" not in codes(several)
    assert one.enclosure == several.enclosure


def perceptron(scale: float = 1.0) -> nn.Module:
    torch.manual_seed(1)
    module = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter *= scale
    return module


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, dropout=0.0, activation="gelu")
        self.body, self.out = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.out(self.body(x.reshape(len(x), 3, 4)).mean(1))
        return z


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.body, self.out = nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.out(self.body(x.reshape(len(x), 3, 4))[0][:, -1])
        return z


INDEPENDENT: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "perceptron": (perceptron, 3),
    "saturated": (lambda: perceptron(30.0), 3),
    "convolution": (
        lambda: nn.Sequential(
            *(nn.Unflatten(1, (1, 4, 3)), nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten()),
            nn.Linear(12, 3),
        ),
        12,
    ),
    "encoder": (Encoder, 12),
    "recurrent": (Recurrent, 12),
}


@pytest.mark.parametrize(("name", "samples", "dtype"), crossed(INDEPENDENT, (1, 1025, 2, 3), ("float64", "float32")))
def test_independent_samples_are_not_called_coupled(name: str, samples: int, dtype: str) -> None:
    build, features = INDEPENDENT[name]
    batch = data(samples, features)
    options = wsb.Options(moments="none", dtype=dtype, max_products=1)
    assert "samples_coupled" not in codes(wsb.analyze(wsb.from_module(build()), batch, options))


def test_rounding_that_inputs_magnify_is_not_taken_for_coupling() -> None:
    """Timestamps whose standardisation is folded into the first layer."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(1, 16), nn.ReLU(), nn.Linear(16, 3)).double()
    rng = np.random.default_rng(0)
    x = 1.7e12 + 3e4 * rng.normal(size=(2500, 1))
    with torch.no_grad():
        module[0].weight /= 3e4
        module[0].bias -= module[0].weight[:, 0] * 1.7e12
    batch = wsb.Batch(x, rng.integers(0, 3, 2500))
    report = wsb.analyze(wsb.from_module(module), batch, wsb.Options(moments="none", max_products=1))
    assert "samples_coupled" not in codes(report)


class LastWord(nn.Module):
    """Takes the last position in use of each sample, by the sample's number."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        last = (x[:, :, 0] > 0).sum(1)
        return self.head(torch.tanh(self.layer(x))[torch.arange(x.shape[0]), last])  # type: ignore[no-any-return]


@pytest.mark.slow
def test_a_file_for_one_sample_that_takes_the_rows_of_its_example_gives_each_sample_its_own_logits(
    tmp_path: Path,
) -> None:
    net = LastWord().eval()
    x = np.random.default_rng(0).standard_normal((6, 4, 4)).astype(np.float32)
    x[:, 3, 0] = -1
    torch.export.save(torch.export.export(net, (torch.from_numpy(x[:1]),)), tmp_path / "model.pt2")
    classifier = wsb.load_model(tmp_path / "model.pt2")
    report = wsb.analyze(classifier, wsb.Batch(x, np.arange(6) % 3), QUICK)
    right = wsb.analyze(wsb.from_module(net), wsb.Batch(x, np.arange(6) % 3), QUICK)
    assert report.enclosure is not None
    assert right.enclosure is not None
    assert report.loss.value == pytest.approx(right.loss.value, rel=1e-12)
    assert report.enclosure.lambda_max.upper == pytest.approx(right.enclosure.lambda_max.upper, rel=1e-8)


def test_a_function_that_takes_the_first_row_for_all_gives_each_sample_its_own_logits_one_at_a_time() -> None:
    def function(parameters: Tensors, inputs: Tensors) -> Tensor:
        x = inputs["x"]
        return x[torch.zeros(len(x), dtype=torch.int64)] @ parameters["w"]

    x, w = torch.randn(5, 3, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
    found = grouped(function, 1)({"w": w}, {"x": x})
    assert torch.allclose(found, x @ w, rtol=1e-14)
    assert not torch.allclose(function({"w": w}, {"x": x}), x @ w)


class Flat(nn.Module):
    """Its forward takes the number of samples from len(x), which a trace keeps as that of the example."""

    def __init__(self, flatten: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.flatten, self.linear = flatten, nn.Sequential(nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 3)).double()

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.linear(self.flatten(x))
        return z


BAKED: dict[str, Callable[[Tensor], Tensor]] = {
    "a reshape": lambda x: x.reshape(len(x), -1),
    "a mask": lambda x: x.flatten(1) + torch.zeros(len(x), 12, dtype=x.dtype),
    "a reshape of parts": lambda x: x.reshape(len(x), -1, 2).mean(1).repeat(1, 6),
    "a loop": lambda x: torch.stack([row.flatten() for row in x]),
}


def traced_flat(flatten: Callable[[Tensor], Tensor], example: int) -> tuple[Flat, wsb.Classifier]:
    torch.manual_seed(0)
    net = Flat(flatten)
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(net, torch.randn(example, 3, 4, dtype=torch.float64), check_trace=False), buffer)
    return net, wsb.load_model(buffer.getvalue())


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning", "ignore:Iterating:UserWarning"
)
@pytest.mark.parametrize(("name", "example"), [*crossed(BAKED, (2, 1, 5), keep=2), ("a reshape of parts", 3)])
def test_a_trace_that_keeps_the_number_of_samples_of_its_example_takes_any(name: str, example: int) -> None:
    net, classifier = traced_flat(BAKED[name], example)
    x = np.random.default_rng(0).normal(size=(7, 3, 4))
    options = QUICK.model_copy(update={"moments": "probes", "failure_probability": 1e-2})
    batch = wsb.Batch(x, np.arange(7) % 3)
    report, right = wsb.analyze(classifier, batch, options), wsb.analyze(wsb.from_module(net), batch, options)
    assert report.loss.value == pytest.approx(right.loss.value, rel=1e-12)
    assert report.enclosure is not None
    assert right.enclosure is not None
    assert report.enclosure.lambda_max.upper == pytest.approx(right.enclosure.lambda_max.upper, rel=1e-8)
    if (name, example) != ("a mask", 1):  # one row is a mask for any number of samples
        assert ("one_at_a_time" if example == 1 else "in_groups") in {warning.code for warning in report.warnings}


def test_a_file_that_treats_places_in_its_example_differently_is_refused() -> None:
    places = torch.arange(24, dtype=torch.float64).reshape(2, 12)
    _, classifier = traced_flat(lambda x: x.reshape(len(x), -1) + places[: len(x)], 2)
    batch = wsb.Batch(np.random.default_rng(0).normal(size=(6, 3, 4)), np.arange(6) % 3)
    with pytest.raises(wsb.ModelError, match="takes 2 samples at a time; the batch has 6") as caught:
        wsb.analyze(classifier, batch)
    assert caught.value.code == "samples_coupled"
