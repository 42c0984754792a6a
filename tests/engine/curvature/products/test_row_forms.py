"""Curvature of single rows against their Hessians by double backward of torch's own losses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.eager import randomised
from torch import Tensor, nn
from torch.nn import functional as F

import wsb_engine as wsb
from wsb_engine.analysis.monitor import Monitor
from wsb_engine.analysis.problem import Problem, pose
from wsb_engine.analysis.questions.population import curvatures
from wsb_engine.curvature.products.mlp import MLPProduct

N = 7
Terms = Callable[[Tensor], Tensor]
"""From the output of the module to the term of each row in the mean loss, (N,)."""


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.head = nn.Embedding(6, 3), nn.Linear(3, 4), nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.mix(self.embed(x)).cumsum(1)))


class StraightThrough(torch.autograd.Function):
    """A backward pass of the module's own, other than the derivative."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.tanh()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient * (1 + x.square()).reciprocal()

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return tangent * (1 + x.square()).reciprocal()


class Own(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return StraightThrough.apply(x)


def perceptron(outputs: int, *, bias: bool = True) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5, bias=bias), nn.Tanh(), nn.Linear(5, 5), nn.SiLU(), nn.Linear(5, outputs))


def rectified(outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 5), nn.LayerNorm(5), nn.Linear(5, outputs))


def convolution() -> nn.Module:
    body = nn.Conv2d(1, 2, 2), nn.GELU(), nn.MaxPool2d(2), nn.BatchNorm2d(2), nn.Flatten()
    return nn.Sequential(*body, nn.Linear(8, 3))


def case(name: str) -> tuple[nn.Module, Tensor, Tensor, Terms, dict[str, Any]]:
    """A module, a batch, the terms of the loss, and options."""
    torch.manual_seed(3)
    x, images, text = torch.randn(N, 4).double(), torch.randn(N, 1, 5, 5).double(), torch.randint(6, (N, 3))
    y, tokens, weights = torch.arange(N) % 3, torch.randint(6, (N, 3)), torch.rand(N).double()
    tokens[0, 1:], v = -100, torch.tensor([0.5, 2.0, 0.3]).double()
    many, numbers = (torch.rand(N, 3) > 0.5).double(), torch.randn(N, 3).double()

    def entropy(z: Tensor) -> Tensor:
        return F.cross_entropy(z, y, reduction="none") / N

    def weighted(z: Tensor) -> Tensor:
        return weights * F.cross_entropy(z, y, v, reduction="none", label_smoothing=0.1) / (weights * v[y]).sum()

    def focal(z: Tensor) -> Tensor:
        log_p = F.log_softmax(z, dim=1).gather(1, y.unsqueeze(1))[:, 0]
        return -((1 - log_p.exp()) ** 2) * log_p / N

    def of_tokens(z: Tensor) -> Tensor:
        each = F.cross_entropy(z.flatten(0, 1), tokens.flatten(), reduction="none")
        return each.view_as(tokens).sum(1) / (tokens >= 0).sum()

    cases: dict[str, tuple[nn.Module, Tensor, Tensor, Terms, dict[str, Any]]] = {
        "perceptron": (perceptron(3), x, y, entropy, {}),
        "without biases": (perceptron(3, bias=False), x, y, entropy, {}),
        "some layers": (perceptron(3), x, y, entropy, {"parameters": ("2.*", "4.weight")}),
        "biases alone": (perceptron(3), x, y, entropy, {"parameters": ("*.bias",)}),
        "class weights, smoothing and weights": (
            perceptron(3),
            x,
            y,
            weighted,
            {"class_weights": v.tolist(), "label_smoothing": 0.1, "weights": weights},
        ),
        "rectified": (rectified(3), x, y, entropy, {}),
        "convolution": (convolution(), images, y, entropy, {}),
        "tokens": (Tokens(), text, tokens, of_tokens, {}),
        "one logit": (
            rectified(1),
            x,
            y % 2,
            lambda z: F.binary_cross_entropy_with_logits(z[:, 0], (y % 2).double(), reduction="none") / N,
            {},
        ),
        "multilabel": (
            perceptron(3),
            x,
            many,
            lambda z: F.binary_cross_entropy_with_logits(z, many, reduction="none").mean(1) / N,
            {"loss": "multilabel"},
        ),
        "numbers": (
            rectified(3),
            x,
            numbers,
            lambda z: (z - numbers).square().mean(1) / N,
            {"loss": "squared_error"},
        ),
        "focal": (perceptron(3), x, y, focal, {"loss": "focal"}),
        "focal, rectified": (rectified(3), x, y, focal, {"loss": "focal"}),
        "a backward of its own": (nn.Sequential(nn.Linear(4, 3), Own(), nn.Linear(3, 3)), x, y, entropy, {}),
    }
    module, *rest = cases[name]
    return randomised(module, seed=5), *rest  # type: ignore[return-value]


NAMES = [
    *("perceptron", "without biases", "some layers", "biases alone", "class weights, smoothing and weights"),
    *("rectified", "convolution", "tokens", "one logit", "multilabel", "numbers", "focal", "focal, rectified"),
    "a backward of its own",
]


def posed(name: str) -> tuple[Problem, nn.Module, Tensor, Terms]:
    module, x, y, terms, options = case(name)
    weights = options.pop("weights", None)
    batch = wsb.Batch(x.numpy(), y.numpy(), None if weights is None else weights.numpy())
    given = wsb.Options(dtype="float64", device="cpu", **options)
    return pose(wsb.from_module(module), batch, given, Monitor(given, None, 0.0)), module, x, terms


def directions(problem: Problem, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(9)
    V = torch.randn(problem.objective.parameters, count, generator=generator, dtype=torch.float64)
    return V / torch.linalg.vector_norm(V, dim=0)


def expected(problem: Problem, module: nn.Module, x: Tensor, terms: Terms, V: Tensor) -> Tensor:
    """vᵀ∇²(term of row s)v of each row along its own column, reverse over reverse, (N,)."""
    start = {name: tensor.detach() for name, tensor in module.named_parameters()}
    names = list(problem.objective.selected)
    sizes = [start[name].numel() for name in names]
    found = []
    for s in range(len(x)):

        def term(flat: Tensor, s: int = s) -> Tensor:
            pieces = zip(names, flat.split(sizes), strict=True)
            values = {**start, **{name: piece.view_as(start[name]) for name, piece in pieces}}
            return terms(torch.func.functional_call(module, values, (x,)))[s]

        flat = torch.cat([start[name].reshape(-1) for name in names])
        flat.requires_grad_()
        (slope,) = torch.autograd.grad(term(flat), flat, create_graph=True)
        (image,) = torch.autograd.grad(slope @ V[:, s], flat)
        found.append(V[:, s] @ image)
    return torch.stack(found)


@pytest.mark.parametrize("name", NAMES)
def test_forms_are_those_of_the_rows_own_hessians(name: str) -> None:
    problem, module, x, terms = posed(name)
    V, objective = directions(problem, N), problem.objective
    forms = curvatures(problem, V, torch.arange(N)) * objective.targets.weights / objective.scale
    right = expected(problem, module, x, terms, V)
    torch.testing.assert_close(forms, right, rtol=1e-9, atol=1e-12 * float(right.abs().max()))


@pytest.mark.parametrize("name", ["perceptron", "convolution"])
def test_rows_that_are_left_out_have_no_form(name: str) -> None:
    problem, *_ = posed(name)
    V, column = directions(problem, 2), torch.tensor([0, -1, 1, 0, -1, 1, 1])
    forms = curvatures(problem, V, column)
    assert (forms == 0).tolist() == (column < 0).tolist()


@pytest.mark.parametrize("name", ["perceptron", "convolution"])
def test_forms_add_up_to_that_of_the_batch(name: str) -> None:
    problem, *_ = posed(name)
    v, weights = directions(problem, 1), problem.objective.targets.weights
    forms = curvatures(problem, v, torch.zeros(N, dtype=torch.int64))
    whole = v[:, 0] @ problem.hessian_product(columns=1).vector(v[:, 0])
    assert float(weights @ forms) == pytest.approx(float(whole), rel=1e-12)


def test_rows_are_multiplied_one_by_one_if_an_operator_has_no_third_derivative(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problem, module, x, terms = posed("convolution")
    V = directions(problem, N)

    def refuse(*_: object) -> Tensor:
        raise NotImplementedError("derivative for aten::_some_backward is not implemented")

    monkeypatch.setattr("wsb_engine.curvature.products.row_forms._along", refuse)
    forms = curvatures(problem, V, torch.arange(N)) / N / problem.objective.scale
    torch.testing.assert_close(forms, expected(problem, module, x, terms, V), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("most", [3, 1, 0])
def test_tiles_shrink_until_they_fit(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    from wsb_engine.curvature.products import row_forms

    problem, *_ = posed("convolution")
    V, column = directions(problem, 1), torch.zeros(N, dtype=torch.int64)
    right, along, tried = curvatures(problem, V, column), row_forms._along, []

    def narrow(objective: Any, direction: Any, rows: Tensor) -> Tensor:
        tried.append(len(rows))
        if len(rows) > most:
            raise MemoryError
        return along(objective, direction, rows)

    monkeypatch.setattr(row_forms, "_along", narrow)
    torch.testing.assert_close(curvatures(problem, V, column), right, rtol=1e-12, atol=0)
    assert tried[:2] == [7, 3]


def test_a_perceptron_goes_on_with_fewer_rows_if_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, *_ = posed("perceptron")
    V, column = directions(problem, 1), torch.zeros(N, dtype=torch.int64)
    right, whole = curvatures(problem, V, column), MLPProduct.row_forms

    def narrow(self: MLPProduct, V: Tensor, column: Tensor) -> Tensor:
        if self._rows > 2:
            raise MemoryError
        return whole(self, V, column)

    monkeypatch.setattr(MLPProduct, "row_forms", narrow)
    torch.testing.assert_close(curvatures(problem, V, column), right, rtol=1e-12, atol=0)
    monkeypatch.setattr(MLPProduct, "row_forms", lambda *_: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(wsb.ResourceError) as raised:
        curvatures(problem, V, column)
    assert raised.value.code == "out_of_memory"


@pytest.mark.parametrize("name", ["perceptron", "convolution"])
def test_what_interrupts_passes_through(name: str) -> None:
    problem, *_ = posed(name)

    def stop() -> None:
        raise InterruptedError("enough")

    problem = replace(problem, objective=replace(problem.objective, interrupt=stop))
    with pytest.raises(InterruptedError):
        curvatures(problem, directions(problem, 1), torch.zeros(N, dtype=torch.int64))
