"""torch's functions that lack a second derivative, or a forward one, written out for live modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from wsb_engine.curvature.tracing.dispatch import Running
from wsb_engine.errors import ModelError
from wsb_engine.formats.graph.norms import root, vector_norm
from wsb_engine.formats.graph.roots import Roots
from wsb_engine.internals import following_parameters


class Substitutes(Roots):
    """Runs the functions below in place of torch's own of the same name within its block."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = getattr(function, "__name__", "")
        if name not in _TABLE:
            return super().__torch_function__(function, types, args, kwargs)
        with Running(name):
            return _TABLE[name](*args, **(kwargs or {}))


def hardsigmoid(x: Tensor, inplace: bool = False) -> Tensor:
    return torch.clamp(x / 6 + 0.5, 0, 1)


def heaviside(x: Tensor, at_zero: Tensor) -> Tensor:
    return torch.where(x == 0, at_zero, (x > 0).to(x.dtype))


def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """Slopes are one number, or one for each channel."""
    if slope.numel() > 1:
        slope = slope.reshape(-1, *[1] * (x.ndim - 2)) if x.ndim > 1 else slope.reshape(-1)
    else:
        slope = slope.reshape([1] * x.ndim)
    return torch.where(x > 0, x, slope * x)


def rrelu(x: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, *_: Any, **__: Any) -> Tensor:
    """As in inference, with the mean slope."""
    return torch.where(x >= 0, x, x * ((lower + upper) / 2))


def cdist(a: Tensor, b: Tensor, p: float = 2.0, *_: Any, **__: Any) -> Tensor:
    return vector_norm(a.unsqueeze(-2) - b.unsqueeze(-3), p, -1)


def norm(x: Tensor, p: Any = "fro", dim: Any = None, keepdim: bool = False, *arguments: Any, **options: Any) -> Tensor:
    if isinstance(p, (int, float)) and not arguments and not options:
        return vector_norm(x, p, dim, keepdim)
    other: Tensor = torch.norm(x, p, dim, keepdim, *arguments, **options)
    return other


def normalize(x: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: Tensor | None = None) -> Tensor:
    return x / vector_norm(x, p, dim, True).clamp_min(eps)


def std(*arguments: Any, **options: Any) -> Tensor:
    return root(torch.var(*arguments, **options), 0.5)


def std_mean(*arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(*arguments, **options)
    return root(variance, 0.5), mean


_Cell = Callable[[Tensor, tuple[Tensor, ...], Sequence[Tensor | None]], tuple[Tensor, ...]]
"""W x + b of a step, the state, [W_hh, b_hh, W_hr] → the new state, whose first part is the output."""


def _plain(activation: Callable[[Tensor], Tensor]) -> _Cell:
    def cell(given: Tensor, state: tuple[Tensor, ...], weights: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        return (activation(given + _linear(state[0], weights[0], weights[1])),)

    return cell


def _gru_cell(given: Tensor, state: tuple[Tensor, ...], weights: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    reset, update, new = given.chunk(3, dim=-1)
    own_reset, own_update, own_new = _linear(state[0], weights[0], weights[1]).chunk(3, dim=-1)
    reset, update = torch.sigmoid(reset + own_reset), torch.sigmoid(update + own_update)
    candidate = torch.tanh(new + reset * own_new)
    return (candidate + update * (state[0] - candidate),)


def _lstm_cell(given: Tensor, state: tuple[Tensor, ...], weights: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    gates = given + _linear(state[0], weights[0], weights[1])
    entry, forget, new, out = gates.chunk(4, dim=-1)
    c = torch.sigmoid(forget) * state[1] + torch.sigmoid(entry) * torch.tanh(new)
    h = torch.sigmoid(out) * torch.tanh(c)
    return (h if weights[2] is None else _linear(h, weights[2], None), c)


def _linear(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    assert weight is not None  # noqa: S101 - every layer has these
    return nn.functional.linear(x, weight, bias)


def _recurrent(cell: _Cell) -> Callable[..., tuple[Tensor, ...]]:
    """A recurrent function of torch for padded sequences: all of its layers, one step after another."""

    def run(
        x: Tensor,
        initial: Any,
        weights: Any,
        has_biases: bool,
        layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool = False,
    ) -> tuple[Tensor, ...]:
        if not isinstance(has_biases, bool):
            raise ModelError(
                "a recurrent layer gets packed sequences of different lengths",
                code="unsupported_operator",
                advice="Give the module padded sequences, without pack_padded_sequence.",
            )
        states = tuple(initial) if isinstance(initial, (tuple, list)) else (initial,)
        directions = 1 + bidirectional
        each = len(weights) // (layers * directions)
        steps = x.transpose(0, 1) if batch_first else x
        finals: list[tuple[Tensor, ...]] = []
        for layer in range(layers):
            made = []
            for direction in range(directions):
                index = layer * directions + direction
                own = weights[index * each : (index + 1) * each]
                state = tuple(part[index] for part in states)
                outputs, final = _through(cell, steps, state, own, has_biases, backwards=bool(direction))
                made.append(outputs)
                finals.append(final)
            steps = torch.cat(made, dim=-1)
        ends = tuple(torch.stack(parts) for parts in zip(*finals, strict=True))
        return (steps.transpose(0, 1) if batch_first else steps, *ends)

    return run


def _through(
    cell: _Cell,
    steps: Tensor,
    state: tuple[Tensor, ...],
    weights: Sequence[Tensor],
    has_biases: bool,
    *,
    backwards: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Outputs of one direction of one layer, and its last state."""
    biases = weights[2:4] if has_biases else (None, None)
    projection = weights[-1] if len(weights) in (3, 5) else None
    given = nn.functional.linear(steps, weights[0], biases[0])
    outputs = []
    for each in reversed(given.unbind(0)) if backwards else given.unbind(0):
        state = cell(each, state, (weights[1], biases[1], projection))
        outputs.append(state[0])
    return torch.stack(outputs[::-1] if backwards else outputs), state


def _cell(cell: _Cell) -> Callable[..., Any]:
    """A function of torch for one step of a recurrent layer."""

    def run(
        x: Tensor,
        state: Any,
        input_weight: Tensor,
        weight: Tensor,
        input_bias: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Any:
        several = isinstance(state, (tuple, list))
        given = nn.functional.linear(x, input_weight, input_bias)
        after = cell(given, tuple(state) if several else (state,), (weight, bias, None))
        return after if several else after[0]

    return run


_TABLE: dict[str, Callable[..., Any]] = {
    "cdist": cdist,
    "gru": _recurrent(_gru_cell),
    "gru_cell": _cell(_gru_cell),
    "hardsigmoid": hardsigmoid,
    "heaviside": heaviside,
    "lstm": _recurrent(_lstm_cell),
    "linalg_vector_norm": vector_norm,
    "lstm_cell": _cell(_lstm_cell),
    "norm": norm,
    "normalize": normalize,
    "prelu": prelu,
    "rnn_relu": _recurrent(_plain(torch.relu)),
    "rnn_relu_cell": _cell(_plain(torch.relu)),
    "rnn_tanh": _recurrent(_plain(torch.tanh)),
    "rnn_tanh_cell": _cell(_plain(torch.tanh)),
    "rrelu": rrelu,
    "std": std,
    "std_mean": std_mean,
}


def follow_parameters(module: nn.Module) -> None:
    """Let recurrent layers read their weights where the module keeps its parameters, not from a list made before."""
    for layer in module.modules():
        if isinstance(layer, nn.RNNBase):
            layer.__class__ = following_parameters(type(layer))
