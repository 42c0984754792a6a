"""Second derivatives at points where they are a matter of convention: those of the pieces that the loss is made of.

All features of some samples are 0, whatever the parameters near by are, so that central differences of the eager
gradient tell what is right there too.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from support.exports import FORMATS, live, onnx
from support.forms import crossed
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap

from wsb_engine.curvature.tracing.linearize import linearize
from wsb_engine.model import Classifier, Tensors

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning", "ignore:There is a performance drop:UserWarning"
)

Function = Callable[[Tensor], Tensor]


def norm(h: Tensor, order: float = 2) -> Tensor:
    return torch.linalg.vector_norm(h, order, dim=1, keepdim=True)


LONELY = torch.tensor([[1, 1, 0], [0, 0, 0], [1, 0, 1]]).bool()


def attention(h: Tensor) -> Tensor:
    """One of three tokens may look at nothing."""
    t = h.reshape(-1, 1, 3, 2)
    return h + F.scaled_dot_product_attention(t, t.sin(), t.cos(), attn_mask=LONELY).reshape(-1, 6)


EVERYWHERE: dict[str, Function] = {
    "norm": lambda h: h / (norm(h) + 0.1),
    "norm itself": lambda h: h + norm(h),
    "norm, squared": lambda h: h + norm(h) ** 2,
    "norm, limited": lambda h: h / norm(h).clamp(min=1e-3),
    "norm, guarded": lambda h: h / torch.where(norm(h) > 0, norm(h), torch.ones_like(h[:, :1])),
    "norm of order 1": lambda h: h / (norm(h, 1) + 0.1),
    "norm of order 3": lambda h: h / (norm(h, 3) + 0.1),
    "norm of order infinity": lambda h: h / (norm(h, math.inf) + 0.1),
    "normalize": lambda h: F.normalize(h, dim=1),
    "normalize, order 3": lambda h: F.normalize(h, p=3.0, dim=1, eps=1e-3),
    "cosine": lambda h: h + F.cosine_similarity(h, h.flip(1) + 1, dim=1).unsqueeze(1),
    "cosine of two zeros": lambda h: h + F.cosine_similarity(h, h.flip(1), dim=1).unsqueeze(1),
    "deviation": lambda h: h / (h.std(1, keepdim=True) + 0.1),
    "deviation of all": lambda h: h / (h.std(1, keepdim=True, unbiased=False) + 0.1),
    "root of a mean square and more": lambda h: h * torch.rsqrt(h.square().mean(1, keepdim=True) + 1e-2),
    "modulus": lambda h: h.abs(),
    "powers": lambda h: h**2 + h**3 + h**1.0 + h * h**0.0,
    "maximum of equals": lambda h: torch.maximum(h, -h) + torch.minimum(h, 2 * h),
    "largest of equals": lambda h: h + h.amax(1, keepdim=True) + h.max(1, keepdim=True)[0],
    "clamped at its limits": lambda h: h.clamp(0, 1) + h.clamp(min=0) + h.clamp(max=0),
    "relu, leaky": lambda h: F.relu(h) + F.leaky_relu(h) + F.relu6(h),
    "elu and its like": lambda h: F.elu(h, 0.5) + F.selu(h) + F.celu(h, 0.5) + F.elu(h),
    "hard functions at their ends": lambda h: F.hardtanh(h, 0, 1) + F.softsign(h),
    "log-sum-exp of equals": lambda h: h + torch.logsumexp(h, 1, keepdim=True),
    "a quotient in the branch not taken": lambda h: torch.where(
        h == 0, h, h.sin() / torch.where(h == 0, torch.ones_like(h), h)
    ),
    "pooling of equals": lambda h: F.max_pool1d(h.unsqueeze(1), 3, 1, 1).squeeze(1),
    "attention to nothing": attention,
    "product": lambda h: h + h.prod(1, keepdim=True),
}
LIVE: dict[str, Function] = {
    "layer norm": lambda h: F.layer_norm(h, [6]),
    "prelu": lambda h: F.prelu(h, torch.full((1,), 0.2).to(h.dtype)),
    "hard sigmoid at its ends": lambda h: F.hardsigmoid(h + 3) + F.hardswish(h - 3),
    "distance": lambda h: h + F.pairwise_distance(h, h.flip(1), eps=0.0).unsqueeze(1),
    "distances": lambda h: h + torch.cdist(h.reshape(-1, 2, 3), h.reshape(-1, 2, 3)).flatten(1)[:, :1],
    "sinc": lambda h: h + torch.sinc(h),
    "tensor.norm": lambda h: h / (h.norm(p=3, dim=1, keepdim=True) + 0.1) + h / (h.norm(dim=1, keepdim=True) + 0.1),
    "deviation and mean": lambda h: h / (torch.std_mean(h, 1, keepdim=True)[0] + 0.1),
}
TAKEN_APART: dict[str, Function] = {
    "root of a sum of squares": lambda h: h / ((h * h).sum(1, keepdim=True).sqrt() + 0.1),
    "root of a mean of squares": lambda h: h / (h.square().mean(1, keepdim=True).sqrt() + 0.1),
    "root as a power": lambda h: h / (h.pow(2).sum(1, keepdim=True) ** 0.5 + 0.1),
    "root of scaled squares": lambda h: h / ((0.5 * (h * h).sum(1) / 3).reshape(-1, 1).sqrt().clamp(min=1e-3)),
}


class Model(nn.Module):
    """A function of features that are 0 for two of the samples."""

    def __init__(self, function: Function, *, dead: bool) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.first, self.second = nn.Linear(4, 6, bias=dead), nn.Linear(6, 3)
        self.function, self.dead = function, dead
        with torch.no_grad():
            if dead:
                self.first.weight.abs_()

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        z: Tensor = self.second(self.function(torch.relu(h) if self.dead else h))
        return z


Y = torch.tensor([0, 1, 2, 0, 1, 2, 0])


def samples(*, dead: bool) -> Tensor:
    """(7, 4), two of which have features that are 0: all inputs are 0, or no unit is active."""
    x = torch.randn(7, 4, generator=torch.Generator().manual_seed(2)).double()
    x[[2, 5]] = -20.0 if dead else 0.0
    return x


def differences(model: nn.Module, x: Tensor) -> Tensor:
    """The Hessian from central differences of the eager gradient."""
    point = {name: p.detach() for name, p in model.double().named_parameters()}
    flat = torch.cat([p.reshape(-1) for p in point.values()])

    def gradient(at: Tensor) -> Tensor:
        at = at.requires_grad_()
        pieces = at.split([p.numel() for p in point.values()])
        values = {name: piece.view_as(p) for piece, (name, p) in zip(pieces, point.items(), strict=True)}
        return torch.autograd.grad(F.cross_entropy(functional_call(model, values, (x,)), Y), at)[0]

    steps = 1e-5 * torch.eye(len(flat), dtype=flat.dtype)
    return torch.stack([(gradient(flat + step) - gradient(flat - step)) / 2e-5 for step in steps])


def check(classifier: Classifier, x: Tensor, expected: Tensor) -> None:
    """Compares products of every kind that an analysis makes, side by side, one by one and linearised."""
    model = classifier.resolve(head="logits")
    point = {name: p.double() for name, p in model.parameters.items()}
    sizes = [p.numel() for p in point.values()]
    assert sum(sizes) == len(expected)
    # A file stores 0.1 and 1 / 3 in single precision.
    tolerance = float(expected.abs().max()) * (1e-5 if classifier.format == "onnx" else 2e-6)

    def loss(at: Tensors, data: Tensor) -> Tensor:
        return F.cross_entropy(model.function(at, {"x": data}), Y)

    def unflatten(v: Tensor) -> Tensors:
        return {n: piece.view_as(p) for piece, (n, p) in zip(v.split(sizes), point.items(), strict=True)}

    def flatten(parts: Tensors) -> Tensor:
        return torch.cat([parts[name].reshape(-1) for name in point])

    def product(v: Tensor) -> Tensor:
        return flatten(jvp(lambda at: grad(loss)(at, x), (point,), (unflatten(v),))[1])

    H = vmap(product)(torch.eye(sum(sizes), dtype=torch.float64))
    # The file may order and transpose its parameters otherwise, which leaves the eigenvalues.
    torch.testing.assert_close(_eigenvalues(H), _eigenvalues(expected), rtol=0, atol=tolerance)
    v = torch.randn(sum(sizes), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for image in (product(v), flatten(linearize(grad(loss), point, x)(x)(unflatten(v)))):
        torch.testing.assert_close(image, H @ v, rtol=1e-9, atol=1e-9)


def _eigenvalues(H: Tensor) -> Tensor:
    return torch.linalg.eigvalsh((H + H.T) / 2)


POINTS = {"zero inputs": False, "dead units": True}
"""What makes the features 0: whether no unit is active."""


@pytest.mark.parametrize(("name", "kind", "point"), crossed(EVERYWHERE, FORMATS, POINTS, keep=10))
def test_curvature_at_conventional_points_is_that_of_the_pieces(name: str, kind: str, point: str) -> None:
    dead = POINTS[point]
    model, x = Model(EVERYWHERE[name], dead=dead), samples(dead=dead)
    check(FORMATS[kind](model, x), x, differences(model, x))


@pytest.mark.parametrize(("name", "point"), crossed(LIVE, POINTS, keep=3))
def test_live_modules_have_more_such_operators(name: str, point: str) -> None:
    dead = POINTS[point]
    model, x = Model(LIVE[name], dead=dead), samples(dead=dead)
    check(live(model, x), x, differences(model, x))


@pytest.mark.parametrize(("name", "kind"), crossed(TAKEN_APART, FORMATS, keep=3))
def test_norms_that_are_taken_apart_stay_norms(name: str, kind: str) -> None:
    model, x = Model(TAKEN_APART[name], dead=True), samples(dead=True)
    check(FORMATS[kind](model, x), x, differences(model, x))


def test_a_quotient_that_is_nan_on_purpose_has_no_slope_in_a_file() -> None:
    model, x = Model(lambda h: torch.where(norm(h) == 0, h, h / norm(h)), dead=True), samples(dead=True)
    right = Model(lambda h: F.normalize(h, dim=1), dead=True)
    check(onnx(model, x), x, differences(right, x))


@pytest.mark.parametrize("kind", FORMATS)
def test_a_slope_that_is_infinite_is_not_taken_for_0(kind: str) -> None:
    model, x = Model(lambda h: h.abs().sqrt(), dead=False), samples(dead=False)
    found = FORMATS[kind](model, x).resolve(head="logits")
    gradient = grad(lambda at: F.cross_entropy(found.function(at, {"x": x}), Y))
    point = {name: p.double() for name, p in found.parameters.items()}
    assert not all(bool(part.isfinite().all()) for part in gradient(point).values())
