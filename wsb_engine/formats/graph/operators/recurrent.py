"""RNN, GRU and LSTM, unrolled over time in plain tensor operations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from wsb_engine.formats.graph import problems
from wsb_engine.formats.graph.limits import LIMITS
from wsb_engine.formats.graph.operators.registry import Call, operator

_State = tuple[Tensor, ...]
_Step = Callable[[Tensor, _State], _State]
_Activation = Callable[[Tensor, float, float], Tensor]

_ACTIVATIONS: dict[str, tuple[_Activation, float, float]] = {
    "affine": (lambda x, a, b: a * x + b, 1.0, 0.0),
    "elu": (lambda x, a, b: functional.elu(x, a), 1.0, 0.0),
    "hardsigmoid": (lambda x, a, b: torch.clamp(a * x + b, 0.0, 1.0), 0.2, 0.5),
    "leakyrelu": (lambda x, a, b: functional.leaky_relu(x, a), 0.01, 0.0),
    "relu": (lambda x, a, b: torch.relu(x), 0.0, 0.0),
    "scaledtanh": (lambda x, a, b: a * torch.tanh(b * x), 1.0, 1.0),
    "sigmoid": (lambda x, a, b: torch.sigmoid(x), 0.0, 0.0),
    "softplus": (lambda x, a, b: functional.softplus(x, threshold=40.0), 0.0, 0.0),
    "softsign": (lambda x, a, b: functional.softsign(x), 0.0, 0.0),
    "tanh": (lambda x, a, b: torch.tanh(x), 0.0, 0.0),
    "thresholdedrelu": (lambda x, a, b: torch.where(x > a, x, torch.zeros_like(x)), 1.0, 0.0),
}


def _functions(call: Call, default: tuple[str, ...], directions: int) -> list[Callable[[Tensor], Tensor]]:
    """The activations, for each direction in turn; α and β are handed out to those that take them, in order."""
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


@dataclass(frozen=True)
class _Layer:
    """The shared part of the three operators: layout, directions, lengths and initial states."""

    call: Call
    x: Tensor
    """(time, N, features)."""
    lengths: Tensor | None
    hidden: int
    directions: tuple[int, ...]
    """1 for forward, −1 for reverse."""
    batch_first: bool

    def initial(self, state: Tensor | None, index: int) -> Tensor:
        if state is None:
            return torch.zeros(self.x.shape[1], self.hidden, dtype=self.x.dtype, device=self.x.device)
        return state[:, index] if self.batch_first else state[index]

    def run(self, step: _Step, states: _State, direction: int) -> tuple[Tensor, _State]:
        """Outputs (time, N, hidden) in the order of the input, and the last states."""
        times = range(self.x.shape[0]) if direction > 0 else reversed(range(self.x.shape[0]))
        outputs: list[Tensor] = []
        for time in times:
            fresh = step(self.x[time], states)
            shown = fresh[0]
            if self.lengths is not None:  # beyond its end a sequence keeps its state and puts out zeros
                alive = (self.lengths > time).reshape(-1, 1)
                fresh = tuple(torch.where(alive, new, old) for new, old in zip(fresh, states, strict=True))
                shown = torch.where(alive, fresh[0], torch.zeros_like(fresh[0]))
            states = fresh
            outputs.append(shown)
        return torch.stack(outputs if direction > 0 else outputs[::-1]), states

    def result(self, outputs: list[Tensor], *finals: list[Tensor]) -> tuple[Tensor, ...]:
        """Y (time, directions, N, hidden) and the last states (directions, N, hidden), or batch first."""
        made = (torch.stack(outputs, dim=1), *(torch.stack(final) for final in finals))
        if not self.batch_first:
            return made
        return (made[0].permute(2, 0, 1, 3), *(final.transpose(0, 1) for final in made[1:]))


def _layer(call: Call, x: Tensor, recurrent: Tensor, lengths: Tensor | None) -> _Layer:
    batch_first = bool(call.get("layout", 0))
    names = {"forward": (1,), "reverse": (-1,), "bidirectional": (1, -1)}
    direction = call.get("direction", "forward")
    if direction not in names:
        raise call.wrong(f"direction {direction!r} is unknown")
    steps = x.shape[1 if batch_first else 0]
    if steps > LIMITS.time_steps:
        raise problems.too_complex(f"time steps in {call.node.label}", steps, LIMITS.time_steps)
    return _Layer(
        call, x.transpose(0, 1) if batch_first else x, lengths, recurrent.shape[2], names[direction], batch_first
    )


def _biases(bias: Tensor | None, index: int, like: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The input's and the state's bias of one direction."""
    if bias is None:
        zero = torch.zeros(width, dtype=like.dtype, device=like.device)
        return zero, zero
    return bias[index][:width], bias[index][width:]


@operator("RNN", since=7)
def rnn(
    call: Call,
    x: Tensor,
    weight: Tensor,
    recurrent: Tensor,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    initial: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """h ← f(W x + R h + b)."""
    layer = _layer(call, x, recurrent, lengths)
    functions = _functions(call, ("Tanh",), len(layer.directions))
    outputs, finals = [], []
    for index, direction in enumerate(layer.directions):
        first, second = _biases(bias, index, x, layer.hidden)

        def step(v: Tensor, states: _State, i: int = index, b: Tensor = first + second) -> _State:
            return (functions[i](v @ weight[i].T + states[0] @ recurrent[i].T + b),)

        made, states = layer.run(step, (layer.initial(initial, index),), direction)
        outputs.append(made)
        finals.append(states[0])
    return layer.result(outputs, finals)


@operator("GRU", since=7)
def gru(
    call: Call,
    x: Tensor,
    weight: Tensor,
    recurrent: Tensor,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    initial: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Gates in the order z, r, h."""
    layer = _layer(call, x, recurrent, lengths)
    functions = _functions(call, ("Sigmoid", "Tanh"), len(layer.directions))
    after = bool(call.get("linear_before_reset", 0))
    outputs, finals = [], []
    for index, direction in enumerate(layer.directions):
        first, second = _biases(bias, index, x, 3 * layer.hidden)

        def step(v: Tensor, states: _State, i: int = index, b: Tensor = first, c: Tensor = second) -> _State:
            gate, new = functions[2 * i], functions[2 * i + 1]
            (h,) = states
            vz, vr, vh = (v @ weight[i].T + b).chunk(3, dim=1)
            rz, rr, rh = recurrent[i].chunk(3)
            cz, cr, ch = c.chunk(3)
            z, r = gate(vz + h @ rz.T + cz), gate(vr + h @ rr.T + cr)
            candidate = new(vh + (r * (h @ rh.T + ch) if after else (r * h) @ rh.T + ch))
            return ((1 - z) * candidate + z * h,)

        made, states = layer.run(step, (layer.initial(initial, index),), direction)
        outputs.append(made)
        finals.append(states[0])
    return layer.result(outputs, finals)


@operator("LSTM", since=7)
def lstm(
    call: Call,
    x: Tensor,
    weight: Tensor,
    recurrent: Tensor,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    initial: Tensor | None = None,
    initial_cell: Tensor | None = None,
    peephole: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Gates in the order i, o, f, c; peepholes in the order i, o, f."""
    if call.get("input_forget", 0):
        raise call.unsupported("input_forget")
    layer = _layer(call, x, recurrent, lengths)
    functions = _functions(call, ("Sigmoid", "Tanh", "Tanh"), len(layer.directions))
    outputs, finals, cells = [], [], []
    for index, direction in enumerate(layer.directions):
        first, second = _biases(bias, index, x, 4 * layer.hidden)
        peeps = torch.zeros_like(first[: 3 * layer.hidden]) if peephole is None else peephole[index]

        def step(
            v: Tensor, states: _State, i: int = index, b: Tensor = first + second, peeps: Tensor = peeps
        ) -> _State:
            gate, new, shown = functions[3 * i : 3 * i + 3]
            h, c = states
            vi, vo, vf, vc = (v @ weight[i].T + h @ recurrent[i].T + b).chunk(4, dim=1)
            pi, po, pf = peeps.chunk(3)
            cell = gate(vf + pf * c) * c + gate(vi + pi * c) * new(vc)
            return gate(vo + po * cell) * shown(cell), cell

        start = (layer.initial(initial, index), layer.initial(initial_cell, index))
        made, states = layer.run(step, start, direction)
        outputs.append(made)
        finals.append(states[0])
        cells.append(states[1])
    return layer.result(outputs, finals, cells)
