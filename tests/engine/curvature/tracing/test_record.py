"""Recorded operators: the function itself on other arguments, at little cost in Python, and nothing lost unnoticed."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.func import functional_call, grad
from torch.nn.attention import SDPBackend, sdpa_kernel

from wsb_engine.curvature.tracing import record as recording
from wsb_engine.curvature.tracing.linearize import NotReproducedError, linearize
from wsb_engine.curvature.tracing.record import NumberReadError, form_of, record
from wsb_engine.model import Tensors

CALLS_PER_OPERATOR = 200
"""Calls of Python functions for each operator that a trace records; torch's own tracer takes ten times as many."""


def replayed(function: Callable[..., Any], first: list[Tensor], then: list[Tensor]) -> Any:
    """Record at some arguments, and run the graph at others."""
    (graph, constants), _ = record(lambda *given: [function(*given)], first)
    return fx.GraphModule(constants, graph)(*then)[0]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.tanh(x) @ x.T + torch.ones(3, 3),
        lambda x: sum(torch.split(x, 1, dim=1)),
        lambda x: torch.linalg.qr(x)[1] + x.max(dim=0)[1],
        lambda x: torch.cat([x[:1], x.flip(0)]).index_add(0, torch.tensor([0, 0]), x[:2]),
        lambda x: x.clone().mul_(2).add_(x),
        lambda x: (lambda y: (y.t().mul_(3), y)[1])(x.clone()),
    ],
)
def test_a_recording_is_the_function_at_other_arguments_too(function: Callable[[Tensor], Tensor]) -> None:
    first, then = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(replayed(function, [first], [then]), function(then))


def test_memory_that_is_used_again_is_not_taken_for_what_it_held() -> None:
    def function(x: Tensor) -> Tensor:
        total = torch.zeros_like(x)
        for factor in range(50):  # each tensor may get the place of an earlier one
            total = total + (x * factor).sin()
        return total

    x = torch.linspace(0, 1, 4)
    assert torch.equal(replayed(function, [x], [x + 1]), function(x + 1))


@pytest.mark.parametrize("read", [float, bool, lambda x: x.item(), lambda x: torch.equal(x, x + 1)])
def test_a_number_read_out_of_an_argument_is_refused(read: Callable[[Tensor], object]) -> None:
    with pytest.raises(NumberReadError):
        record(lambda x: [x if read(x.sum()) else -x], [torch.ones(2)])
    constant = torch.ones(())
    record(lambda x: [x if read(constant) else -x], [torch.ones(2)])


def test_forms_tell_dense_tensors_as_torch_does() -> None:
    for shape in ((), (3,), (2, 0, 3), (2, 3, 1, 4), (1, 1, 1, 1), (2, 1, 3, 3)):
        for order in itertools.permutations(range(len(shape))):
            tensor = torch.empty([shape[axis] for axis in order]).permute(*order) if shape else torch.empty(())
            form = form_of(tensor)
            assert form.is_contiguous == tensor.is_contiguous()
            last = tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
            assert form.is_channels_last == (last and not tensor.is_contiguous())


def test_a_trace_that_lost_the_direction_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    track = recording._Recorder._track

    def losing(self: Any, tensor: Tensor, node: fx.Node) -> None:
        if "mul" not in str(node.target):
            track(self, tensor, node)

    monkeypatch.setattr(recording._Recorder, "_track", losing)
    with pytest.raises(NotReproducedError):
        linearize(lambda here, _: {"a": here["a"] * here["a"]}, {"a": torch.ones(3)}, ())


def encoder_gradient() -> tuple[Callable[[Tensors, Any], Tensors], Tensors]:
    torch.manual_seed(0)
    module = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, activation="gelu", batch_first=True).double().eval()
    x = torch.randn(3, 4, 8, dtype=torch.float64)

    def loss(parameters: Tensors, _: Any) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return functional_call(module, dict(parameters), (x,)).square().sum()  # type: ignore[no-any-return]

    return grad(loss), {name: tensor.detach() for name, tensor in module.named_parameters()}


def test_a_trace_takes_few_calls_for_each_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = operators = 0
    dispatch = recording._Recorder.__torch_dispatch__

    def counting(self: Any, *given: Any, **named: Any) -> Any:
        nonlocal operators
        operators += 1
        return dispatch(self, *given, **named)

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event == "call"

    function, point = encoder_gradient()
    linearize(function, point, ())  # imports what torch needs
    monkeypatch.setattr(recording._Recorder, "__torch_dispatch__", counting)
    sys.setprofile(count)
    try:
        linearize(function, point, ())
    finally:
        sys.setprofile(None)
    assert operators > 500
    assert calls <= CALLS_PER_OPERATOR * operators
