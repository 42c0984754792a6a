"""RNN, GRU and LSTM."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from wsb_engine.formats.commands import SAVE_PT2
from wsb_engine.formats.graph import problems
from wsb_engine.formats.graph.kernels.elementwise import softplus
from wsb_engine.formats.graph.kernels.recurrent import Cell, Functions, gru_cell, lstm_cell, rnn_cell, unrolled
from wsb_engine.formats.graph.limits import LIMITS
from wsb_engine.formats.graph.operators.registry import Call, operator

_Activation = Callable[[Tensor, float, float], Tensor]

_ACTIVATIONS: dict[str, tuple[_Activation, float, float]] = {
    "affine": (lambda x, a, b: a * x + b, 1.0, 0.0),
    "elu": (lambda x, a, b: functional.elu(x, a), 1.0, 0.0),
    "hardsigmoid": (lambda x, a, b: torch.clamp(a * x + b, 0.0, 1.0), 0.2, 0.5),
    "leakyrelu": (lambda x, a, b: functional.leaky_relu(x, a), 0.01, 0.0),
    "relu": (lambda x, a, b: torch.relu(x), 0.0, 0.0),
    "scaledtanh": (lambda x, a, b: a * torch.tanh(b * x), 1.0, 1.0),
    "sigmoid": (lambda x, a, b: torch.sigmoid(x), 0.0, 0.0),
    "softplus": (lambda x, a, b: softplus(x), 0.0, 0.0),
    "softsign": (lambda x, a, b: functional.softsign(x), 0.0, 0.0),
    "tanh": (lambda x, a, b: torch.tanh(x), 0.0, 0.0),
    "thresholdedrelu": (lambda x, a, b: torch.where(x > a, x, torch.zeros_like(x)), 1.0, 0.0),
}


def _functions(call: Call, default: tuple[str, ...], directions: int) -> list[Callable[[Tensor], Tensor]]:
    """Return the activations of each direction in turn; those that take α or β get the next given one."""
    given: tuple[str, ...] = call.node.attributes.get("activations") or default * directions
    alphas = list(call.node.attributes.get("activation_alpha", ()))
    betas = list(call.node.attributes.get("activation_beta", ()))
    limit = call.get("clip", 0.0)
    functions: list[Callable[[Tensor], Tensor]] = []
    for name in given:
        if name.lower() not in _ACTIVATIONS:
            raise call.unsupported(f"activation {name!r}")
        function, alpha, beta = _ACTIVATIONS[name.lower()]
        alpha = alphas.pop(0) if alphas and alpha != 0.0 else alpha
        beta = betas.pop(0) if betas and name.lower() in ("affine", "hardsigmoid", "scaledtanh") else beta

        def apply(x: Tensor, f: _Activation = function, a: float = alpha, b: float = beta) -> Tensor:
            return f(torch.clamp(x, -limit, limit) if limit > 0 else x, a, b)

        functions.append(apply)
    if len(functions) != len(default) * directions:
        raise call.wrong(f"has {len(functions)} activations, not {len(default) * directions}")
    return functions


_DIRECTIONS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
"""Whether each direction of a layer runs backwards."""


def _layer(
    call: Call,
    cell: Callable[[int, Tensor, Tensor | None, Functions], Cell],
    default: tuple[str, ...],
    order: tuple[int, ...],
    given: tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None],
    initial: tuple[Tensor | None, ...],
) -> tuple[Tensor, ...]:
    """What the three operators share: layout, directions, lengths and initial states.

    Args:
        call: The operator's application.
        cell: (direction, R, its bias, functions) → the cell of that direction.
        default: Names of the functions of one direction.
        order: torch's order of the gates, as positions in ONNX's.
        given: The inputs X, W, R, B and sequence_lens.
        initial: Initial states, zero by default.

    Returns:
        Y (time, directions, N, hidden) and the last states (directions, N, hidden), or with samples first.
    """
    x, weight, recurrent, bias, lengths = given
    direction, batch_first = call.get("direction", "forward"), bool(call.get("layout", 0))
    if direction not in _DIRECTIONS:
        raise call.wrong(f"direction {direction!r} is unknown")
    x = x.transpose(0, 1) if batch_first else x
    problems.limit(f"time steps in {call.node.label}", x.shape[0], LIMITS.time_steps)
    backwards, hidden = _DIRECTIONS[direction], recurrent.shape[2]
    _require_consistent(call, len(backwards), len(order), (weight, recurrent, bias), initial)
    functions = _functions(call, default, len(backwards))
    outputs, finals = [], []
    for index, back in enumerate(backwards):
        own, others = (None, None) if bias is None else (_reordered(b, order) for b in bias[index].chunk(2))
        steps = functional.linear(x, _reordered(weight[index], order), own)
        chosen = functions[index * len(default) : (index + 1) * len(default)]
        states = tuple(
            x.new_zeros(x.shape[1], hidden) if each is None else each[:, index] if batch_first else each[index]
            for each in initial
        )
        step = cell(index, _reordered(recurrent[index], order), others, chosen)
        made, final = unrolled(step, steps, states, backwards=back, lengths=lengths)
        outputs.append(made)
        finals.append(final)
    made, states = torch.stack(outputs, dim=1), tuple(torch.stack(each) for each in zip(*finals, strict=True))
    return (made.permute(2, 0, 1, 3), *(each.transpose(0, 1) for each in states)) if batch_first else (made, *states)


def _require_consistent(
    call: Call,
    directions: int,
    gates: int,
    weights: tuple[Tensor, Tensor, Tensor | None],
    initial: tuple[Tensor | None, ...],
) -> None:
    """Reject shapes that contradict each other or the stated size: such a file does not hold the layer."""
    weight, recurrent, bias = weights
    hidden = call.get("hidden_size", recurrent.shape[2])
    stated = [
        ("W", weight, (directions, gates * hidden, weight.shape[2])),
        ("R", recurrent, (directions, gates * hidden, hidden)),
        ("B", bias, (directions, 2 * gates * hidden)),
        *(("an initial state", state, (*state.shape[:-1], hidden)) for state in initial if state is not None),
    ]
    for name, tensor, shape in stated:
        if tensor is not None and tuple(tensor.shape) != shape:
            raise problems.invalid(
                f"{call.node.label}: its shapes contradict each other: {name} has shape {list(tensor.shape)}, which "
                f"must be {list(shape)} for a state of {hidden} elements",
                advice="Export a layer with proj_size, which ONNX lacks and torch.onnx.export drops without an error, "
                f"in another format: {SAVE_PT2}. Export any other model again, and check it with onnx.checker.",
                **call.node.details,
            )


def _reordered(x: Tensor, order: tuple[int, ...]) -> Tensor:
    """Return the same gates in another order along the first axis."""
    return x if len(order) == 1 else torch.cat([x.chunk(len(order))[gate] for gate in order])


@operator("RNN", since=7, activation=True)
def rnn(
    call: Call, x: Tensor, weight: Tensor, recurrent: Tensor, bias: Tensor | None = None,
    lengths: Tensor | None = None, initial: Tensor | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """h ← f(W x + R h + b)."""
    given = (x, weight, recurrent, bias, lengths)
    return _layer(call, lambda _, W, b, functions: rnn_cell(W, b, functions), ("Tanh",), (0,), given, (initial,))


@operator("GRU", since=7, activation=True)
def gru(
    call: Call, x: Tensor, weight: Tensor, recurrent: Tensor, bias: Tensor | None = None,
    lengths: Tensor | None = None, initial: Tensor | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gates in the order z, r, h."""
    reset_first = not call.get("linear_before_reset", 0)

    def cell(index: int, weight: Tensor, bias: Tensor | None, functions: Functions) -> Cell:
        return gru_cell(weight, bias, functions, reset_first=reset_first)

    return _layer(call, cell, ("Sigmoid", "Tanh"), (1, 0, 2), (x, weight, recurrent, bias, lengths), (initial,))


@operator("LSTM", since=7, activation=True)
def lstm(
    call: Call, x: Tensor, weight: Tensor, recurrent: Tensor, bias: Tensor | None = None,
    lengths: Tensor | None = None, initial: Tensor | None = None, initial_cell: Tensor | None = None,
    peepholes: Tensor | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gates in the order i, o, f, c; peepholes in the order i, o, f."""
    if call.get("input_forget", 0):
        raise call.unsupported("input_forget")

    def cell(index: int, weight: Tensor, bias: Tensor | None, functions: Functions) -> Cell:
        own = None if peepholes is None else peepholes[index]
        return lstm_cell(weight, bias, functions, peepholes=own)

    given = (x, weight, recurrent, bias, lengths)
    return _layer(call, cell, ("Sigmoid", "Tanh", "Tanh"), (0, 2, 3, 1), given, (initial, initial_cell))
