"""RNN, GRU and LSTM, unrolled over time in plain tensor operations, with weights laid out as torch has them.

A cell takes W x + b of one step, (N, gates · hidden), and the state, and returns the new state, whose first part is the
output. Functions default to torch's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

State = tuple[Tensor, ...]
Cell = Callable[[Tensor, State], State]
Functions = Sequence[Callable[[Tensor], Tensor]]
_GATED = (torch.sigmoid, torch.tanh, torch.tanh)


def rnn_cell(weight: Tensor, bias: Tensor | None, functions: Functions = (torch.tanh,)) -> Cell:
    """h ← f(W x + b + R h + c)."""

    def cell(given: Tensor, state: State) -> State:
        return (functions[0](given + functional.linear(state[0], weight, bias)),)

    return cell


def gru_cell(weight: Tensor, bias: Tensor | None, functions: Functions = _GATED, *, reset_first: bool = False) -> Cell:
    """Gates in the order reset, update, new.

    Args:
        weight: R, (3 · hidden, hidden).
        bias: c, (3 · hidden,).
        functions: Functions of the gates and of the candidate.
        reset_first: True if the reset gate multiplies h before R does, not after.
    """
    hidden = weight.shape[1]

    def linear(h: Tensor, start: int, end: int) -> Tensor:
        rows = slice(start * hidden, end * hidden)
        return functional.linear(h, weight[rows], None if bias is None else bias[rows])

    def cell(given: Tensor, state: State) -> State:
        (h,) = state
        reset, update, new = given.chunk(3, -1)
        own = linear(h, 0, 2 if reset_first else 3).split(hidden, -1)
        reset, update = functions[0](reset + own[0]), functions[0](update + own[1])
        candidate = functions[1](new + (linear(reset * h, 2, 3) if reset_first else reset * own[2]))
        return (candidate + update * (h - candidate),)

    return cell


def lstm_cell(
    weight: Tensor,
    bias: Tensor | None,
    functions: Functions = _GATED,
    *,
    projection: Tensor | None = None,
    peepholes: Tensor | None = None,
) -> Cell:
    """Gates in the order input, forget, new, output.

    Args:
        weight: R, (4 · hidden, size of the output).
        bias: c, (4 · hidden,).
        functions: Functions of the gates, of the new content of the cell, and of the cell in the output.
        projection: Multiplies the output, (size, hidden).
        peepholes: Weights of the cell in the input, the output and the forget gate, (3 · hidden,).
    """

    def cell(given: Tensor, state: State) -> State:
        gate, content, shown = functions
        entry, forget, new, out = (given + functional.linear(state[0], weight, bias)).chunk(4, -1)
        if peepholes is not None:
            first, last, middle = peepholes.chunk(3)
            entry, forget = entry + first * state[1], forget + middle * state[1]
        c = gate(forget) * state[1] + gate(entry) * content(new)
        h = gate(out if peepholes is None else out + last * c) * shown(c)
        return (h if projection is None else functional.linear(h, projection), c)

    return cell


def unrolled(
    cell: Cell, given: Tensor, state: State, *, backwards: bool, lengths: Tensor | None = None
) -> tuple[Tensor, State]:
    """Outputs (time, N, hidden) in the order of the input, and the last state.

    Args:
        cell: Takes one step.
        given: W x + b of all steps, (time, N, gates · hidden).
        state: The state before the first step.
        backwards: True to begin at the end.
        lengths: Steps of each sample, (N,); beyond them it keeps its state and its output is zero.
    """
    outputs: list[Tensor] = []
    steps = list(enumerate(given.unbind(0)))
    for time, step in reversed(steps) if backwards else steps:
        fresh = cell(step, state)
        shown = fresh[0]
        if lengths is not None:
            alive = (lengths > time).reshape(-1, 1)
            fresh = tuple(torch.where(alive, new, old) for new, old in zip(fresh, state, strict=True))
            shown = torch.where(alive, fresh[0], torch.zeros_like(fresh[0]))
        state = fresh
        outputs.append(shown)
    return torch.stack(outputs[::-1] if backwards else outputs), state


def _step(cell: Callable[[Tensor, Tensor | None], Cell]) -> Callable[..., Any]:
    """Return a function of torch for one step of a recurrent layer.

    Args:
        cell: (R, its bias) → the cell.
    """

    def run(
        input: Tensor,  # noqa: A002 - torch's own name
        hx: Any, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None = None, b_hh: Tensor | None = None,
    ) -> Any:  # fmt: skip
        several = isinstance(hx, (tuple, list))
        after = cell(w_hh, b_hh)(functional.linear(input, w_ih, b_ih), tuple(hx) if several else (hx,))
        return after if several else after[0]

    return run


STEPS: Mapping[str, Callable[..., Any]] = {
    "gru_cell": _step(gru_cell),
    "lstm_cell": _step(lstm_cell),
    "rnn_relu_cell": _step(lambda weight, bias: rnn_cell(weight, bias, (torch.relu,))),
    "rnn_tanh_cell": _step(rnn_cell),
}
"""Function of torch for one step of a recurrent layer, by name, with torch's arguments."""
