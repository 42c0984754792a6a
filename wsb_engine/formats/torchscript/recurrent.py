"""Recurrent layers as ``torch.nn`` calls them: several layers, both directions, weights in one flat list."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from wsb_engine.formats.graph import problems
from wsb_engine.formats.graph.kernels.recurrent import Cell, State, gru_cell, lstm_cell, rnn_cell, unrolled
from wsb_engine.formats.graph.limits import LIMITS
from wsb_engine.formats.torchscript.values import Call

_Weights = tuple[Tensor, Tensor | None, Tensor | None]
"""R, its bias, and the projection of the output."""


def _layers(
    call: Call, cell: Callable[[_Weights], Cell], x: Tensor, initial: State, weights: list[Tensor], has_biases: bool,
    layers: int, bidirectional: bool, batch_first: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Outputs (time, N, directions · hidden), or with samples first, and the last states.

    Args:
        call: The operator's application.
        cell: (R, its bias, projection) → the cell of one layer and direction.
        x: (time, N, features), or with samples first; without N for one sample.
        initial: Initial states (layers · directions, N, hidden).
        weights: For each layer and direction W, R, their biases if there are any, and a projection if there is one.
        has_biases: True if there are biases.
        layers: Number of layers.
        bidirectional: True if each layer runs in both directions.
        batch_first: True if the samples are on the first axis of x.
    """
    if call.node.overload not in ("input", ""):
        raise call.unsupported("packed sequences")
    single = x.ndim == 2
    if single:
        x, initial = x.unsqueeze(1), tuple(state.unsqueeze(1) for state in initial)
    elif batch_first:
        x = x.transpose(0, 1)
    problems.limit(f"time steps in {call.node.label}", x.shape[0], LIMITS.time_steps)
    directions = 2 if bidirectional else 1
    each, rest = divmod(len(weights), max(layers * directions, 1))
    if rest or not weights or each not in (2, 3, 4, 5):
        raise call.unsupported(f"a list of {len(weights)} weights for {layers} layers")
    finals = []
    for layer in range(layers):
        outputs = []
        for direction in range(directions):
            index = layer * directions + direction
            first, recurrent, *others = weights[index * each : (index + 1) * each]
            biases = others[:2] if has_biases else [None, None]
            projections = others[2:] if has_biases else others
            steps = functional.linear(x, first, biases[0])
            step = cell((recurrent, biases[1], projections[0] if projections else None))
            state = tuple(given[index] for given in initial)
            made, final = unrolled(step, steps, state, backwards=direction == 1)
            outputs.append(made)
            finals.append(final)
        x = torch.cat(outputs, -1)
    states = tuple(torch.stack(kind) for kind in zip(*finals, strict=True))
    if single:
        return x.squeeze(1), *(state.squeeze(1) for state in states)
    return x.transpose(0, 1) if batch_first else x, *states


def _rnn(
    function: Callable[[Tensor], Tensor], call: Call, x: Tensor, initial: Tensor, weights: list[Tensor],
    has_biases: bool, layers: int, dropout: float, train: bool, bidirectional: bool, batch_first: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    def cell(given: _Weights) -> Cell:
        recurrent, bias, _ = given
        return rnn_cell(recurrent, bias, (function,))

    return _layers(call, cell, x, (initial,), weights, has_biases, layers, bidirectional, batch_first)


rnn_tanh = partial(_rnn, torch.tanh)
rnn_relu = partial(_rnn, torch.relu)


def gru(
    call: Call, x: Tensor, initial: Tensor, weights: list[Tensor], has_biases: bool, layers: int, dropout: float,
    train: bool, bidirectional: bool, batch_first: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Compute ``nn.GRU``; dropout as in inference."""

    def cell(given: _Weights) -> Cell:
        recurrent, bias, _ = given
        return gru_cell(recurrent, bias)

    return _layers(call, cell, x, (initial,), weights, has_biases, layers, bidirectional, batch_first)


def lstm(
    call: Call, x: Tensor, initial: list[Tensor], weights: list[Tensor], has_biases: bool, layers: int,
    dropout: float, train: bool, bidirectional: bool, batch_first: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Compute ``nn.LSTM``; dropout as in inference."""

    def cell(given: _Weights) -> Cell:
        recurrent, bias, projection = given
        return lstm_cell(recurrent, bias, projection=projection)

    return _layers(call, cell, x, tuple(initial), weights, has_biases, layers, bidirectional, batch_first)
