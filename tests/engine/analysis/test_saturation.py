"""Saturated attention and activations: what rounding leaves of H is no more than certificates and checks allow for."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import mpmath  # type: ignore[import-untyped]
import numpy as np
import pytest
import torch
from support.forms import full
from torch import Tensor, nn
from torch.nn import functional as F

import wsb
from wsb_engine.analysis import agreement
from wsb_engine.analysis.monitor import Monitor
from wsb_engine.analysis.problem import Problem, pose
from wsb_engine.bounds.rounding import Rounding

Matrix = list[list[mpmath.mpf]]

OPTIONS = wsb.Options(dtype="float64", device="cpu", parameters=("key.weight",))
TOLERANCE = 1e4 * torch.finfo(torch.float64).eps


class Attention(nn.Module):
    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.query = nn.Linear(features, features, bias=False)
        self.key = nn.Linear(features, features, bias=False)
        self.out = nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.query(x) @ self.key(x).transpose(1, 2)
        pooled: Tensor = self.out((torch.softmax(scores, -1) @ x).mean(1))
        return pooled


def cancelling() -> tuple[nn.Module, wsb.Batch]:
    """Attention whose weights span six orders of magnitude: terms of H cancel to its rounding."""
    torch.manual_seed(20)
    module = Attention(4, 3).double()
    x, y = torch.randn(5, 3, 4).double(), torch.randint(0, 3, (5,))
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(10.0 ** (6 * torch.rand_like(p) - 4))
    return module, wsb.Batch(x.numpy(), y.numpy())


def posed(module: nn.Module, batch: wsb.Batch) -> Problem:
    return pose(wsb.from_module(module), batch, OPTIONS, Monitor(OPTIONS, None, 0.0))


def asymmetry(vector: Any, problem: Problem, rounding: Rounding) -> float:
    whole = problem.hessian_product(columns=1)
    product: Any = SimpleNamespace(
        parameters=whole.parameters, device=whole.device, dtype=whole.dtype, vector=lambda v: vector(whole, v)
    )
    found = agreement.of_products(problem, product, rounding, 0, Monitor(OPTIONS, None, 0.0)).symmetry
    assert found is not None
    return found


def test_rounding_that_is_allowed_for_fails_no_check() -> None:
    module, batch = cancelling()
    report = wsb.analyze(wsb.from_module(module), batch, OPTIONS)
    assert [check.name for check in report.checks if not check.passed] == []
    exact = Rounding(how="proven", operator=0.0)
    assert asymmetry(lambda product, v: product.vector(v), posed(module, batch), exact) > TOLERANCE


def test_a_product_by_a_matrix_that_is_not_symmetric_is_found() -> None:
    rng = np.random.default_rng(0)
    batch = wsb.Batch(rng.normal(size=(6, 3, 4)), rng.integers(0, 3, 6))
    torch.manual_seed(0)
    problem = posed(Attention(4, 3).double(), batch)

    def skewed(product: Any, v: Tensor) -> Tensor:
        image = product.vector(v)
        skew: Tensor = 1e-6 * image.norm() / v.norm() * torch.cat([v[8:], -v[:8]])
        moved: Tensor = skew + image
        return moved

    slack = Rounding(how="measured", operator=1e-15)
    assert asymmetry(lambda product, v: product.vector(v), problem, slack) <= TOLERANCE
    assert asymmetry(skewed, problem, slack) > TOLERANCE


class Stabilised(Attention):
    """Attention whose softmax is written out, with the largest score subtracted."""

    def forward(self, x: Tensor) -> Tensor:
        scores = self.query(x) @ self.key(x).transpose(1, 2)
        weights = torch.exp(scores - scores.amax(-1, keepdim=True))
        pooled: Tensor = self.out((weights / weights.sum(-1, keepdim=True) @ x).mean(1))
        return pooled


@pytest.mark.parametrize("network", [Attention, Stabilised])
def test_rounding_of_attention_is_measured_in_all_parts(network: type[Attention]) -> None:
    rng = np.random.default_rng(0)
    batch = wsb.Batch(rng.normal(size=(6, 3, 4)), rng.integers(0, 3, 6))
    torch.manual_seed(0)
    report = wsb.analyze(wsb.from_module(network(4, 3).double()), batch, wsb.Options(dtype="float64", device="cpu"))
    assert not report.messages("rounding_in_part")


def saturated(seed: int, features: int) -> tuple[Attention, wsb.Batch]:
    """Attention between three tokens, most of it saturated: weights span six orders of magnitude."""
    torch.manual_seed(seed)
    module = Attention(features, 3).double()
    x, y = torch.randn(4, 3, features).double(), torch.randint(0, 3, (4,))
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(10.0 ** (6 * torch.rand_like(p) - 3.5))
        if seed % 2:
            module.query.weight.mul_(20)
    return module, wsb.Batch(x.numpy(), y.numpy())


def times(matrix: Matrix, vector: list[mpmath.mpf]) -> list[mpmath.mpf]:
    return [mpmath.fdot(row, vector) for row in matrix]


def numbers(tensor: Tensor) -> Matrix:
    return [[mpmath.mpf(number) for number in row] for row in tensor.tolist()]


def loss_of_keys(module: Attention, batch: wsb.Batch, keys: Matrix) -> mpmath.mpf:
    query, out = numbers(module.query.weight), numbers(module.out.weight)
    total = mpmath.mpf(0)
    for tokens, label in zip(torch.as_tensor(batch.x["x"]), batch.y, strict=True):
        x = numbers(tokens)
        pooled = [mpmath.mpf(0)] * len(x[0])
        for asking in x:
            scores = [mpmath.fdot(times(query, asking), times(keys, token)) for token in x]
            weights = [mpmath.exp(score - max(scores)) for score in scores]
            share = 1 / mpmath.fsum(weights) / len(x)
            pooled = [
                p + share * mpmath.fdot(weights, column) for p, column in zip(pooled, zip(*x, strict=True), strict=True)
            ]
        z = [v + b for v, b in zip(times(out, pooled), module.out.bias.tolist(), strict=True)]
        total += max(z) + mpmath.log(mpmath.fsum(mpmath.exp(v - max(z)) for v in z)) - z[int(label)]
    return total / len(batch.y)


def extremes_of_keys(module: Attention, batch: wsb.Batch) -> tuple[mpmath.mpf, mpmath.mpf]:
    """λ_min and λ_max of H by the weights of the keys, by differences of a loss with 70 digits."""
    keys, step = numbers(module.key.weight), mpmath.mpf(10) ** -18
    columns = len(keys)

    def at(*places: int, sign: int = 1) -> mpmath.mpf:
        moved = [row.copy() for row in keys]
        for place in places:
            moved[place // columns][place % columns] += sign * step
        return loss_of_keys(module, batch, moved)

    order, middle = columns * columns, at()
    sides = [at(i) + at(i, sign=-1) for i in range(order)]
    H = mpmath.matrix(order)
    for i in range(order):
        H[i, i] = (sides[i] - 2 * middle) / step**2
        for j in range(i):
            both = at(i, j) + at(i, j, sign=-1)
            H[i, j] = H[j, i] = (both - sides[i] - sides[j] + 2 * middle) / (2 * step**2)
    eigenvalues = mpmath.eigsy(H, eigvals_only=True)
    return eigenvalues[0], eigenvalues[order - 1]


@pytest.mark.parametrize(("seed", "features"), [(14, 2), full(23, 3), (24, 3)])
def test_no_certificate_of_saturated_attention_excludes_the_truth(seed: int, features: int) -> None:
    module, batch = saturated(seed, features)
    with mpmath.workdps(70):
        low, top = extremes_of_keys(module, batch)
    report = wsb.analyze(wsb.from_module(module), batch, OPTIONS)
    if report.enclosure is not None:
        assert report.enclosure.lambda_max.lower <= top <= report.enclosure.lambda_max.upper
        assert report.enclosure.lambda_min.lower <= low <= report.enclosure.lambda_min.upper
    whole = wsb.Options(dtype="float64", device="cpu", layers="certified", moments="none")
    layers = wsb.analyze(wsb.from_module(module), batch, whole).layers
    assert layers is not None
    for layer in layers:
        if layer.name == "key" and layer.lambda_max is not None:
            assert layer.lambda_max.lower <= top <= layer.lambda_max.upper
    assert report.enclosure is not None or seed != 24, "here rounding leaves an enclosure"


class Flagged(torch.autograd.Function):
    """tanh, with a backward pass that decides by a number that it kept."""

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tanh(x), torch.ones_like(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*output)
        ctx.save_for_forward(*output)

    @staticmethod
    def backward(ctx: Any, slope: Tensor, _: Tensor) -> Tensor:  # type: ignore[override]
        value, flag = ctx.saved_tensors
        return torch.where(flag == 1, slope * (1 - value * value), 0.0)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        value, _ = ctx.saved_tensors
        return tangent * (1 - value * value), None


class Deciding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.out(Flagged.apply(self.inner(x))[0])  # type: ignore[no-untyped-call]
        return logits


def test_what_a_module_keeps_for_its_own_backward_pass_is_left_alone_and_that_is_said() -> None:
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    options = wsb.Options(dtype="float64", device="cpu")
    batch = wsb.Batch(rng.normal(size=(6, 4)), rng.integers(0, 3, 6))
    report = wsb.analyze(wsb.from_module(Deciding().double()), batch, options)
    enclosure = report.enclosure
    assert enclosure is not None
    assert enclosure.lambda_max.relative_gap < 1e-6
    assert report.messages("rounding_in_part")


class Gated(nn.Module):
    """Logits that depend on one weight, through an activation whose own derivatives lose digits."""

    def __init__(self, activation: Callable[[Tensor], Tensor], weight: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight, dtype=torch.float64))
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.activation(x * self.weight) * torch.tensor([[0.01, 0.005, -0.003]], dtype=torch.float64)
        return z


def _softplus(x: Any) -> Any:
    return mpmath.log1p(mpmath.exp(x))


GATES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Any], Any], float]] = {
    "silu": (F.silu, lambda x: x / (1 + mpmath.exp(-x)), 38.0),
    "gelu by tanh": (
        lambda x: F.gelu(x, approximate="tanh"),
        lambda x: x / 2 * (1 + mpmath.tanh(mpmath.sqrt(2 / mpmath.pi) * (x + mpmath.mpf(0.044715) * x**3))),
        6.0,
    ),
    "softplus": (lambda x: F.softplus(x, 20), lambda x: _softplus(20 * x) / 20, 0.5),
    "softplus up to 5": (lambda x: F.softplus(x, 1, 5), lambda x: x if x > 5 else _softplus(x), 5.01),
    "log sigmoid": (F.logsigmoid, lambda x: -_softplus(-x), 6.0),
    "log sigmoid, flat": (F.logsigmoid, lambda x: -_softplus(-x), 38.0),
    "log softmax": (
        lambda x: F.log_softmax(torch.cat([x, torch.zeros_like(x)], 1), 1)[:, :1],
        lambda x: -_softplus(-x),
        20.0,
    ),
    "glu": (lambda x: F.glu(torch.cat([x + 1, x], 1)), lambda x: (x + 1) / (1 + mpmath.exp(-x)), 38.0),
}


@pytest.mark.parametrize("name", GATES)
def test_digits_that_an_activation_loses_in_its_derivative_are_allowed_for(name: str) -> None:
    activation, exact, weight = GATES[name]
    x, y = np.array([[1.0], [1.01], [0.97], [1.03]]), np.array([0, 1, 2, 1])

    def loss(weight: Any) -> Any:
        total = mpmath.mpf(0)
        for value, label in zip(x[:, 0], y, strict=True):
            z = [mpmath.mpf(factor) * exact(mpmath.mpf(float(value)) * weight) for factor in (0.01, 0.005, -0.003)]
            total += mpmath.log(sum(map(mpmath.exp, z))) - z[label]
        return total / len(y)

    with mpmath.workdps(120):
        step, at = mpmath.mpf(10) ** -30, mpmath.mpf(weight)
        truth = (loss(at + step) - 2 * loss(at) + loss(at - step)) / step**2
        report = wsb.analyze(
            wsb.from_module(Gated(activation, weight)), wsb.Batch(x, y), wsb.Options(dtype="float64", device="cpu")
        )
        if report.enclosure is None:
            assert report.messages("enclosure_withheld")
        else:
            assert (
                mpmath.mpf(report.enclosure.lambda_max.lower) <= truth <= mpmath.mpf(report.enclosure.lambda_max.upper)
            )
            assert report.enclosure.rounding.slack <= 1e-3 * abs(truth)
