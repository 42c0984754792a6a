"""Which operators keep a model from being smooth: the same answer for a live module, TorchScript and ONNX."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from support.exports import FORMATS, live, onnx, traced
from support.forms import crossed, full
from torch import Tensor, nn

from wsb_engine.curvature.tracing.smoothness import nonsmooth_operators
from wsb_engine.model import Classifier

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")

Between = Callable[[Tensor, Tensor], Tensor]
ALLOWED = torch.tensor([[1, 1, 0], [0, 1, 1], [1, 0, 1]]).bool()
LONELY = torch.tensor([[1, 1, 0], [0, 0, 0], [1, 0, 1]]).bool()


def tokens(h: Tensor) -> Tensor:
    return h.reshape(-1, 3, 2)


def attention(h: Tensor, allowed: Tensor) -> Tensor:
    t = tokens(h).unsqueeze(1)
    return F.scaled_dot_product_attention(t, t.sin(), t, attn_mask=allowed).reshape(-1, 6)


def guarded(h: Tensor, allowed: Tensor) -> Tensor:
    """Attention with NaN for whoever may look at nothing, replaced."""
    t = tokens(h)
    weights = (t @ t.transpose(1, 2)).masked_fill(~allowed, -math.inf).softmax(-1)
    return h + (torch.where(weights.isnan(), torch.zeros_like(weights), weights) @ t).reshape(-1, 6)


def norm(h: Tensor, order: float = 2) -> Tensor:
    return torch.linalg.vector_norm(h, order, dim=1, keepdim=True)


# Each takes h of shape (N, 6), which depends on parameters, and a positive m of that shape, which does not.
SMOOTH: dict[str, Between] = {
    "tanh": lambda h, m: torch.tanh(h),
    "elu": lambda h, m: F.elu(h),
    "celu": lambda h, m: F.celu(h, 0.7),
    "softplus": lambda h, m: F.softplus(h),
    "a kink in what no parameter enters": lambda h, m: h * F.relu(m - 1) * (m > 0.8) * m.argmax(1, keepdim=True),
    "a mask": lambda h, m: torch.where(m > 0.8, h, torch.zeros_like(h)) + h.masked_fill(m > 1, 0.0),
    "a mean over a mask": lambda h, m: h * (m > 0.8) / (m > 0.8).to(h.dtype).sum().clamp(min=1),
    "masked attention": lambda h, m: attention(h, ALLOWED),
    "a guard of a softmax": lambda h, m: guarded(h, LONELY),
    "a guard of a sum": lambda h, m: (
        h / torch.where(h.sum(1, keepdim=True) == 0, torch.ones_like(h[:, :1]), h.sum(1, keepdim=True))
    ),
    "a guard against NaN": lambda h, m: torch.where(h == h, h, torch.zeros_like(h)),
    "a guard against infinity": lambda h, m: torch.where(h.abs() == math.inf, torch.zeros_like(h), h),
    "a norm": lambda h, m: h / norm(h),
    "a norm of order 3": lambda h, m: h * norm(h.exp(), 3),
    "a norm, limited from below": lambda h, m: F.normalize(h, dim=1),
    "a norm, compared with 0": lambda h, m: torch.where(norm(h) > 0, h / norm(h), h),
    "a norm, written out": lambda h, m: h / (h * h).sum(1, keepdim=True).sqrt(),
    "a norm, squared": lambda h, m: norm(h) ** 2 * h,
    "a cosine": lambda h, m: h * F.cosine_similarity(h, m, dim=1).unsqueeze(1),
    "a deviation": lambda h, m: h / h.std(1, keepdim=True),
    "a root of a square and more": lambda h, m: (h * h + 0.5).sqrt(),
    "a root of a fourth power": lambda h, m: (h**4).sqrt(),
    "a root of what is positive": lambda h, m: (
        torch.sigmoid(h).sqrt() + (torch.exp(h) ** 2).sqrt() + F.softplus(h) ** 0.5
    ),
    "a cubed modulus": lambda h, m: (h * h) ** 1.5,
    "a limit that a square does not reach": lambda h, m: (h * h).clamp(min=0) + F.relu(h**2),
    "not 0": lambda h, m: h * (h != 0),
}
KINKED: dict[str, Between] = {
    "relu": lambda h, m: F.relu(h),
    "relu as a choice": lambda h, m: torch.where(h > 0, h, torch.zeros_like(h)),
    "relu as a product": lambda h, m: h * (h > 0),
    "relu as a filling": lambda h, m: h.masked_fill(h <= 0, 0.0),
    "relu as a maximum": lambda h, m: torch.maximum(h, torch.zeros_like(h)),
    "relu in place": lambda h, m: h.clone().relu_(),
    "the modulus": lambda h, m: h.abs(),
    "the modulus as a root": lambda h, m: (h * h).sqrt(),
    "the modulus as a power": lambda h, m: (h**2) ** 0.5,
    "the modulus as a scaled root": lambda h, m: (3 * h.square() / 2).sqrt(),
    "the modulus as a norm": lambda h, m: torch.linalg.vector_norm(h.unsqueeze(2), dim=2),
    "the modulus as a sum of one square": lambda h, m: h.unsqueeze(2).pow(2).sum(2).sqrt(),
    "the modulus of a difference": lambda h, m: ((h - m) ** 2).sqrt(),
    "the modulus, log-scaled": lambda h, m: (h**2).tanh().sqrt() * h,
    "the sign as a quotient": lambda h, m: h * h / (h * h).sqrt(),
    "a power between": lambda h, m: (h * h) ** 0.75,
    "order 1": lambda h, m: h / norm(h, 1),
    "order 1, written out": lambda h, m: h / h.abs().sum(1, keepdim=True),
    "order infinity": lambda h, m: h / norm(h, math.inf),
    "a norm, compared with 1": lambda h, m: torch.where(norm(h) > 1, h / norm(h), h),
    "fmod": lambda h, m: torch.fmod(h, 0.6),
    "remainder": lambda h, m: torch.remainder(h, 0.6),
    "floor": lambda h, m: h - torch.floor(h),
    "round": lambda h, m: h * torch.round(3 * h),
    "sign": lambda h, m: h * torch.sign(h),
    "division to the floor": lambda h, m: h * torch.div(h, 0.3, rounding_mode="floor"),
    "whole numbers": lambda h, m: h * h.long(),
    "sorting": lambda h, m: torch.sort(h, 1)[0],
    "the largest": lambda h, m: h / h.amax(1, keepdim=True),
    "what is equal to the largest": lambda h, m: h * (h == h.amax(1, keepdim=True)),
    "an element of the largest": lambda h, m: h + torch.gather(h * h, 1, h.argmax(1, keepdim=True)),
    "the place of the largest": lambda h, m: h * (h.argmax(1, keepdim=True) == torch.arange(6)),
    "pooling": lambda h, m: F.max_pool1d(h.unsqueeze(1), 3, 1, 1).squeeze(1),
    "clamping": lambda h, m: h.clamp(-0.5, 0.5),
    "hardsigmoid": lambda h, m: F.hardsigmoid(h),
    "hardswish": lambda h, m: F.hardswish(h),
    "selu": lambda h, m: F.selu(h),
    "elu with another slope": lambda h, m: F.elu(h, 0.5),
    "leaky relu": lambda h, m: F.leaky_relu(h),
    "prelu": lambda h, m: F.prelu(h, torch.full((1,), 0.2).to(h.dtype)),
}
ONLY_IN_TORCH: dict[str, Between] = {
    "running maximum": lambda h, m: torch.cummax(h, 1)[0],
    "running minimum": lambda h, m: torch.cummin(h, 1)[0],
    "copysign": lambda h, m: torch.copysign(h * h, h),
    "heaviside": lambda h, m: h * torch.heaviside(h, torch.ones_like(m)),
    "median": lambda h, m: h * h.median(1, keepdim=True)[0],
    "deviation of two": lambda h, m: h * h[:, :2].std(1, keepdim=True),
    "sharp softplus": lambda h, m: F.softplus(h, 2.0, 1.0),
    "threshold": lambda h, m: F.threshold(h, 0.1, 0.2),
    "a buffer, written to": lambda h, m: torch.zeros_like(h).copy_(h.abs()),
}
LIVE: dict[str, Between] = {
    "a part, written to": lambda h, m: torch.zeros_like(h).index_copy_(1, torch.tensor([1]), F.relu(h[:, :1])) + h,
    "a view, written to": lambda h, m: _with_relu_in_a_view(h),
    "bins": lambda h, m: h * torch.bucketize(h, torch.linspace(-1, 1, 5).to(h.dtype)),
    "kth value": lambda h, m: h * h.kthvalue(2, 1, keepdim=True)[0],
    "a quantile": lambda h, m: h * torch.quantile(h, 0.3, dim=1, keepdim=True),
    "a distance of order 1": lambda h, m: h + torch.cdist(h, m[:1], p=1.0),
    "a largest of several": lambda h, m: torch.zeros_like(h).scatter_reduce(
        1, torch.tensor([[0, 1, 2, 0, 1, 2]]).expand_as(h), h, "amax"
    ),
    "a branch of the code": lambda h, m: h if bool((h.sum() > 0).item()) else 2 * h,
    "straight-through rounding": lambda h, m: h + (h.round() - h).detach(),
    "rrelu": lambda h, m: F.rrelu(h),
}


def _with_relu_in_a_view(h: Tensor) -> Tensor:
    made = h.clone()
    made[:, :2] = F.relu(made[:, :2])
    return made


class Model(nn.Module):
    """A function between two layers."""

    def __init__(self, function: Between) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.second, self.function = nn.Linear(4, 6), nn.Linear(6, 3), function

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.second(self.function(self.first(x), torch.cat([x, x[:, :2]], 1).abs() + 0.5))
        return z


X = torch.randn(5, 4, generator=torch.Generator().manual_seed(1)).double()


def found(classifier: Classifier) -> tuple[str, ...]:
    model = classifier.resolve(head="logits")
    return nonsmooth_operators(model.function, {n: p.double() for n, p in model.parameters.items()}, {"x": X[:2]})


@pytest.mark.parametrize(("name", "kind"), crossed([*SMOOTH, *KINKED], FORMATS))
def test_kinks_and_jumps_are_named_in_every_format(name: str, kind: str) -> None:
    names = found(FORMATS[kind](Model((SMOOTH | KINKED)[name]), X[:2]))
    assert bool(names) == (name in KINKED), names


@pytest.mark.parametrize(("name", "kind"), crossed(ONLY_IN_TORCH, ["live", "torchscript"]))
def test_kinks_that_onnx_lacks_are_named(name: str, kind: str) -> None:
    assert found(FORMATS[kind](Model(ONLY_IN_TORCH[name]), X[:2]))


@pytest.mark.parametrize("name", LIVE)
def test_kinks_in_code_of_live_modules_are_named(name: str) -> None:
    assert found(live(Model(LIVE[name]), X))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("relu as a choice", ("Greater", "Where")),
        ("hardsigmoid", ("HardSigmoid",)),
        ("fmod", ("Mod",)),
        ("an element of the largest", ("ArgMax",)),
        ("order 1", ("ReduceL1",)),
    ],
)
def test_operators_have_the_names_of_the_file(name: str, expected: tuple[str, ...]) -> None:
    assert found(onnx(Model(KINKED[name]), X[:2])) == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", [full("masked attention"), full("a guard of a softmax"), "a norm, limited from below"])
def test_guards_of_the_other_exporter_are_no_kinks(name: str) -> None:
    assert found(onnx(Model(SMOOTH[name]), X[:2], dynamo=True)) == ()


@pytest.mark.parametrize(("activation", "names"), [("relu", ("relu",)), ("gelu", ())])
@pytest.mark.parametrize("read", [live, traced])
def test_an_encoder_is_as_smooth_as_its_activation(
    read: Callable[[nn.Module, Tensor], Classifier], activation: str, names: tuple[str, ...]
) -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(4, 2, 8, activation=activation, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            z: Tensor = self.layer(x.unsqueeze(1)).flatten(1)
            return z

    with torch.no_grad():  # torch runs the whole layer as one operator then
        assert found(read(Encoder().eval(), X[:2])) == names


def test_a_kink_that_does_not_reach_the_logits_is_not_named() -> None:
    class Aside(Model):
        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            F.relu(h).sum()
            z: Tensor = self.second(torch.tanh(h))
            return z

    assert found(live(Aside(lambda h, m: h), X)) == ()


@pytest.mark.parametrize(("kind", "names"), [("tanh", ()), ("relu", ("rnn_relu",))])
def test_a_recurrent_layer_is_as_smooth_as_its_activation(kind: str, names: tuple[str, ...]) -> None:
    class Recurrent(Model):
        def __init__(self) -> None:
            super().__init__(lambda h, m: h)
            self.cell = nn.RNN(2, 6, nonlinearity=kind, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            z: Tensor = self.second(self.cell(x.reshape(-1, 2, 2))[0][:, -1])
            return z

    assert found(live(Recurrent(), X)) == names
