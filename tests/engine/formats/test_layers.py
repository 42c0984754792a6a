"""Layers whose own second derivative torch lacks or splits up: live, traced, scripted, exported, against formulas."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable

import pytest
import torch
from support.eager import eager_hessian, randomised
from support.forms import crossed
from support.pt2 import exported
from torch import Tensor, nn
from torch.nn import functional as F

import wsb_engine as wsb

SAMPLES = 6
Y = torch.arange(SAMPLES) % 3
ROWS = torch.randn(SAMPLES, 5, generator=torch.Generator().manual_seed(1)).double()
SEQUENCES = torch.randn(SAMPLES, 3, 3, generator=torch.Generator().manual_seed(2)).double()
IMAGES = torch.randn(SAMPLES, 1, 4, 4, generator=torch.Generator().manual_seed(3)).double()
IDS = torch.randint(0, 7, (SAMPLES, 4), generator=torch.Generator().manual_seed(4))


class Layer(nn.Module):
    """A network that can be evaluated as it is, or with its layer written out."""

    x = ROWS

    def written_out(self, x: Tensor) -> Tensor:
        z: Tensor = self(x)
        return z


class Bag(Layer):
    x = IDS

    def __init__(self, mode: str, *, weighted: bool = False, padding: int | None = None) -> None:
        super().__init__()
        self.mode, self.weighted = mode, weighted
        self.bag = nn.EmbeddingBag(7, 4, mode=mode, padding_idx=padding)
        self.weights, self.out = nn.Parameter(torch.zeros(1, 4)), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.weights.expand(x.shape[0], 4)
        bags = self.bag(x, per_sample_weights=weights) if self.weighted else self.bag(x) * self.weights
        z: Tensor = self.out(torch.tanh(bags))
        return z

    def written_out(self, x: Tensor) -> Tensor:
        rows, keep = F.embedding(x, self.bag.weight), torch.ones_like(x, dtype=torch.bool)
        if self.bag.padding_idx is not None:
            keep = x != self.bag.padding_idx
        if self.weighted:
            rows = rows * self.weights.unsqueeze(2)
        if self.mode == "max":
            made = torch.where(keep.unsqueeze(2), rows, -torch.inf).amax(1)
        else:
            made = (rows * keep.unsqueeze(2)).sum(1)
        if self.mode == "mean":
            made = made / keep.sum(1, keepdim=True).clamp(min=1)
        return self.out(torch.tanh(made if self.weighted else made * self.weights))  # type: ignore[no-any-return]


class Offsets(Layer):
    """States where the bags of the whole batch begin, and where the last one ends."""

    x = IDS

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.out = nn.EmbeddingBag(7, 4, mode="sum", include_last_offset=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        offsets = torch.arange(0, x.shape[0] * x.shape[1] + 1, x.shape[1])
        z: Tensor = self.out(torch.tanh(self.bag(x.reshape(-1), offsets)))
        return z

    def written_out(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(F.embedding(x, self.bag.weight).sum(1)))  # type: ignore[no-any-return]


class Steps(Layer):
    """A recurrent layer, step by step."""

    x = SEQUENCES

    def __init__(self, cell: nn.RNNCellBase) -> None:
        super().__init__()
        self.cell, self.out = cell, nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.cell(x[:, 1], self.cell(x[:, 0]))
        return self.out(h)  # type: ignore[no-any-return]


class LongSteps(Layer):
    x = SEQUENCES

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.LSTMCell(3, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h, c = self.cell(x[:, 1], self.cell(x[:, 0]))
        return self.out(h * c)  # type: ignore[no-any-return]


class Pairs(Layer):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.pairs = nn.Linear(5, 4), nn.Bilinear(4, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.pairs(torch.tanh(self.first(x)), x)  # type: ignore[no-any-return]


class Prototypes(Layer):
    """Distances to learned points."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.first, self.points, self.p = nn.Linear(5, 4), nn.Parameter(torch.zeros(3, 4)), p

    def forward(self, x: Tensor) -> Tensor:
        return -torch.cdist(torch.tanh(self.first(x)), self.points, p=self.p)

    def written_out(self, x: Tensor) -> Tensor:
        differences = torch.tanh(self.first(x)).unsqueeze(1) - self.points
        powers: Tensor = differences.abs() if self.p == 1 else differences.square()
        return -(powers.sum(2) ** (1 / self.p))


class Patches(Layer):
    """Overlapping patches, each through a layer, and added up again."""

    x = IMAGES

    def __init__(self) -> None:
        super().__init__()
        self.apart, self.layer = nn.Unfold(3, padding=1, stride=2), nn.Linear(9, 9)
        self.together, self.out = nn.Fold((4, 4), 3, padding=1, stride=2), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.layer(self.apart(x).transpose(1, 2)))
        return self.out(self.together(h.transpose(1, 2)).flatten(1))  # type: ignore[no-any-return]


class Parts(Layer):
    """Parts of a tensor that torch takes for independent, and a product of two vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.v, self.w = nn.Linear(5, 6), nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.unsafe_chunk(torch.tanh(self.first(x)), 2, 1)
        rest = torch.unsafe_split(b, 2, 1)
        return torch.vdot(self.v, self.w.sin()) * a * torch.cat([rest[1], rest[0].exp()], 1)


LAYERS: dict[str, Callable[[], Layer]] = {
    "bag, mean": lambda: Bag("mean"),
    "bag, sum with weights": lambda: Bag("sum", weighted=True),
    "bag, mean with padding": lambda: Bag("mean", padding=3),
    "bag, sum with padding": lambda: Bag("sum", padding=-1),
    "bag, max": lambda: Bag("max"),
    "bag, max with padding": lambda: Bag("max", padding=2),
    "bag, offsets": Offsets,
    "steps, rnn": lambda: Steps(nn.RNNCell(3, 4)),
    "steps, rnn with relu": lambda: Steps(nn.RNNCell(3, 4, nonlinearity="relu")),
    "steps, gru": lambda: Steps(nn.GRUCell(3, 4)),
    "steps, gru without biases": lambda: Steps(nn.GRUCell(3, 4, bias=False)),
    "steps, lstm": LongSteps,
    "bilinear": Pairs,
    "distances": lambda: Prototypes(2.0),
    "distances, L1": lambda: Prototypes(1.0),
    "patches": Patches,
    "parts": Parts,
}


def _saved(module: torch.jit.ScriptModule) -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(module, buffer)
    return buffer.getvalue()


def _traced(module: nn.Module, x: Tensor) -> torch.jit.ScriptModule:
    return torch.jit.trace(module, x[:2], check_trace=False)  # type: ignore[no-any-return, no-untyped-call]


WAYS: dict[str, Callable[[nn.Module, Tensor], wsb.Classifier]] = {
    "live": lambda module, x: wsb.from_module(module),
    "traced": lambda module, x: wsb.load_model(_saved(_traced(module, x))),
    "scripted": lambda module, x: wsb.load_model(_saved(torch.jit.script(module))),
    "frozen": lambda module, x: wsb.load_model(_saved(torch.jit.freeze(_traced(module, x)))),
    "exported": lambda module, x: wsb.load_model(exported(module, x[:2])),
    "exported, free": lambda module, x: wsb.load_model(exported(module, x[:2], free=True)),
    "decomposed": lambda module, x: wsb.load_model(exported(module, x[:2], decomposed=True, free=True)),
}


class WrittenOut(nn.Module):
    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer.written_out(x)


KINKS = {
    "bag, max": {"embedding_bag"},
    "bag, max with padding": {"embedding_bag"},
    "distances, L1": {"cdist"},
    "steps, rnn with relu": {"relu", "rnn_relu_cell"},
}
"""What is not smooth, by the names that the ways of saving a module give it."""
KEPT = ("bag, mean", "steps, gru", "steps, lstm", "bilinear")
"""Those whose parameters freezing keeps in their places."""


APART = [name for name in LAYERS if name != "distances"]
"""Those that torch.export takes with a free number of samples: it looks at the number before it takes distances."""
FREE = ("exported, free", "decomposed")


@pytest.mark.parametrize(
    ("name", "way"),
    [
        *crossed(LAYERS, [way for way in WAYS if way not in ("frozen", *FREE)], keep=3),
        *crossed(APART, FREE, keep=2),
        *crossed(KEPT, ["frozen"], keep=1),
    ],
)
def test_a_layer_has_the_values_and_the_curvature_of_its_formula(name: str, way: str) -> None:
    layer = randomised(LAYERS[name]())
    assert isinstance(layer, Layer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        classifier = WAYS[way](layer, layer.x)
    batch = wsb.Batch({classifier.inputs[0].name: layer.x.numpy()}, Y.numpy())
    model = classifier.resolve()
    torch.testing.assert_close(model.function(model.parameters, dict(batch.x)), layer(layer.x), rtol=1e-12, atol=1e-12)
    report = wsb.analyze(classifier, batch, wsb.Options(spectrum="dense", moments="none"))
    expected = eager_hessian(WrittenOut(layer), layer.x, Y)
    eigenvalues = torch.linalg.eigvalsh(expected)
    assert report.spectrum is not None
    assert report.model.parameters.count == len(expected)
    assert report.spectrum.eigenvalues[0] == pytest.approx(float(eigenvalues[-1]), rel=1e-9)
    assert report.spectrum.eigenvalues[-1] == pytest.approx(float(eigenvalues[0]), rel=1e-9)
    assert report.model.smooth == (name not in KINKS)
    assert set(report.model.nonsmooth_operators) <= KINKS.get(name, set())
    assert all(check.passed for check in report.checks)
    assert not report.messages("samples_coupled")


def test_a_bag_that_scales_its_table_down_is_refused() -> None:
    module = nn.Sequential(nn.EmbeddingBag(7, 4, max_norm=1.0), nn.Linear(4, 3))
    with pytest.raises(wsb.ModelError, match="max_norm") as caught:
        wsb.analyze(wsb.from_module(module), wsb.Batch(IDS, Y))
    assert caught.value.code == "unsupported_operator"


@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")
def test_offsets_state_where_bags_of_any_sizes_begin() -> None:
    class Given(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bag, self.out = nn.EmbeddingBag(7, 4, mode="sum"), nn.Linear(4, 3)

        def forward(self, ids: Tensor, offsets: Tensor) -> Tensor:
            return self.out(torch.tanh(self.bag(ids, offsets)))  # type: ignore[no-any-return]

    module, ids = randomised(Given()), IDS.reshape(-1)
    offsets = torch.tensor([0, 3, 3, 9, 20])
    traced = torch.jit.trace(module, (ids, offsets), check_trace=False)  # type: ignore[no-untyped-call]
    model = wsb.load_model(_saved(traced)).resolve(head="logits")
    z = model.function(model.parameters, {"ids": ids, "offsets": offsets})
    torch.testing.assert_close(z, module(ids, offsets), rtol=1e-12, atol=1e-12)
