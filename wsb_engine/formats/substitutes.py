"""torch's functions that lack a second derivative, a forward one, or a right one, written out for live modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from wsb_engine.curvature.tracing.dispatch import Running
from wsb_engine.errors import ModelError
from wsb_engine.formats.graph.kernels import bags, elementwise, normalization
from wsb_engine.formats.graph.kernels.convolution import unit_stride
from wsb_engine.formats.graph.kernels.norms import cdist, root, vector_norm, weight_norm
from wsb_engine.formats.graph.kernels.products import bilinear
from wsb_engine.formats.graph.kernels.recurrent import STEPS, Cell, gru_cell, lstm_cell, rnn_cell, unrolled
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


def rrelu(
    x: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, inplace: bool = False, **_: Any
) -> Tensor:
    """As in inference, with the mean slope."""
    return elementwise.activation(lambda x: torch.where(x >= 0, x, x * ((lower + upper) / 2)))(x, inplace)


def norm(x: Tensor, p: Any = "fro", dim: Any = None, keepdim: bool = False, *arguments: Any, **options: Any) -> Tensor:
    if isinstance(p, (int, float)) and not arguments and not options:
        return vector_norm(x, p, dim, keepdim)
    other: Tensor = torch.norm(x, p, dim, keepdim, *arguments, **options)
    return other


def embedding(*arguments: Any, **options: Any) -> Tensor:
    """Take ``functional.embedding`` and ``torch.embedding``, which has the weight first."""
    from_weight = "indices" in options or (len(arguments) > 1 and arguments[0].is_floating_point())
    return (_rows if from_weight else _embedding)(*arguments, **options)


def _rows(weight: Tensor, indices: Tensor, padding_idx: int = -1, *_: bool, **__: bool) -> Tensor:
    """Without gradients that are sparse, or divided by how often a row occurs: they are none of the loss."""
    return torch.embedding(weight, indices, padding_idx)


def _embedding(
    input: Tensor,  # noqa: A002 - torch's name
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    *_: bool,
    **__: bool,
) -> Tensor:
    """Rows of a limited norm as a function of the weight; torch's own change the weight, and are derived without."""
    rows = nn.functional.embedding(input, weight, padding_idx)
    if max_norm is None:
        return rows
    size = vector_norm(rows, norm_type, [-1], True)
    return torch.where(size > max_norm, rows * (max_norm / (size + 1e-7)), rows)


def group_norm(
    x: Tensor, groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5, *_: Any
) -> Tensor:
    """torch's own takes the variance from sums of squares where channels come last, and loses the digits of a mean."""
    return normalization.group_norm(x, groups, weight, bias, eps)


def normalize(x: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: Tensor | None = None) -> Tensor:
    return x / vector_norm(x, p, dim, True).clamp_min(eps)


def std(*arguments: Any, **options: Any) -> Tensor:
    return root(torch.var(*arguments, **options), 0.5)


def std_mean(*arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(*arguments, **options)
    return root(variance, 0.5), mean


def embedding_bag(*arguments: Any, **options: Any) -> Any:
    """Compute ``functional.embedding_bag``, or ``torch.embedding_bag``, which takes the table first."""
    own = arguments[0].is_floating_point() if arguments else isinstance(options.get("mode", "mean"), int)
    return (_own_bag if own else _functional_bag)(*arguments, **options)


def _functional_bag(
    input: Tensor,  # noqa: A002 - torch's own name, as below
    weight: Tensor, offsets: Tensor | None = None, max_norm: float | None = None, norm_type: float = 2,
    scale_grad_by_freq: bool = False, mode: str = "mean", sparse: bool = False,
    per_sample_weights: Tensor | None = None, include_last_offset: bool = False, padding_idx: int | None = None,
) -> Tensor:  # fmt: skip
    if max_norm is not None:
        raise ModelError(
            "an embedding bag changes its table, whose rows it scales down to max_norm",
            code="unsupported_operator",
            advice="Scale the rows once after training, and build the module without max_norm.",
        )
    if input.ndim == 2:
        offsets = torch.arange(0, input.numel(), input.shape[1], device=input.device)
    if offsets is None:
        raise ValueError("an embedding bag needs offsets for indices on one axis")
    weights = None if per_sample_weights is None else per_sample_weights.reshape(-1)
    return bags.embedding_bag(
        weight, input.reshape(-1), offsets, mode, weights, ends=include_last_offset, padding=padding_idx
    )


def _own_bag(
    weight: Tensor,
    input: Tensor,  # noqa: A002
    offsets: Tensor, scale_grad_by_freq: bool = False, mode: int = 0,
    sparse: bool = False, per_sample_weights: Tensor | None = None, include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    return bags.as_torch(weight, input, offsets, mode, per_sample_weights, include_last_offset, padding_idx)


def _convolution(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(
        input: Tensor,  # noqa: A002
        weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, *arguments: Any, **options: Any,
    ) -> Tensor:  # fmt: skip
        x, stride, padding = unit_stride(input, weight, stride, padding)
        return function(x, weight, bias, stride, padding, *arguments, **options)

    return run


def convolution(
    input: Tensor,  # noqa: A002
    weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, transposed: bool,
    output_padding: Any, groups: int, *_: Any,
) -> Tensor:  # fmt: skip
    """Convolve; the backend's flags, which may follow, have no meaning here."""
    if not transposed:
        input, stride, padding = unit_stride(input, weight, stride, padding)  # noqa: A001
    return torch.convolution(input, weight, bias, stride, padding, dilation, transposed, output_padding, groups)


_OVERLOADS = ("", ".default", ".padding")
"""What follows the name if a module calls an overload, as one that ``torch.export`` made."""
_CONVOLUTIONS = (torch.conv1d, torch.conv2d, torch.conv3d)

_Layer = Callable[[Tensor, "Tensor | None", "Tensor | None"], Cell]
"""R, its bias and the output's projection → the cell of a layer."""


def _plain(activation: Callable[[Tensor], Tensor]) -> _Layer:
    return lambda weight, bias, _: rnn_cell(weight, bias, (activation,))


def _gru(weight: Tensor, bias: Tensor | None, _: Tensor | None) -> Cell:
    return gru_cell(weight, bias)


def _lstm(weight: Tensor, bias: Tensor | None, projection: Tensor | None) -> Cell:
    return lstm_cell(weight, bias, projection=projection)


def _recurrent(cell: _Layer) -> Callable[..., tuple[Tensor, ...]]:
    """Return a recurrent function of torch for padded sequences: all of its layers, one step after another."""

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
                biases = own[2:4] if has_biases else (None, None)
                step = cell(own[1], biases[1], own[-1] if each in (3, 5) else None)
                given = nn.functional.linear(steps, own[0], biases[0])
                state = tuple(part[index] for part in states)
                outputs, final = unrolled(step, given, state, backwards=bool(direction))
                made.append(outputs)
                finals.append(final)
            steps = torch.cat(made, dim=-1)
        ends = tuple(torch.stack(parts) for parts in zip(*finals, strict=True))
        return (steps.transpose(0, 1) if batch_first else steps, *ends)

    return run


_TABLE: dict[str, Callable[..., Any]] = {
    **STEPS,
    **{f"{each.__name__}{overload}": _convolution(each) for each in _CONVOLUTIONS for overload in _OVERLOADS},
    **dict.fromkeys(("_convolution", "_convolution.default", "convolution", "convolution.default"), convolution),
    "_weight_norm": weight_norm,
    "bilinear": bilinear,
    "cdist": cdist,
    "embedding": embedding,
    "embedding_bag": embedding_bag,
    "group_norm": group_norm,
    "gru": _recurrent(_gru),
    "hardsigmoid": elementwise.activation(elementwise.hard_sigmoid),
    "heaviside": elementwise.heaviside,
    "lstm": _recurrent(_lstm),
    "linalg_vector_norm": vector_norm,
    "logaddexp": elementwise.logaddexp,
    "logaddexp.default": elementwise.logaddexp,
    "mish": elementwise.activation(elementwise.mish),
    "mish.default": elementwise.mish,
    "norm": norm,
    "normalize": normalize,
    "prelu": elementwise.prelu,
    "rnn_relu": _recurrent(_plain(torch.relu)),
    "rnn_tanh": _recurrent(_plain(torch.tanh)),
    "rrelu": rrelu,
    "std": std,
    "std_mean": std_mean,
}


def follow_parameters(module: nn.Module) -> None:
    """Let recurrent layers read their weights where the module keeps its parameters, not from a list made before."""
    for layer in module.modules():
        if isinstance(layer, nn.RNNBase):
            layer.__class__ = following_parameters(type(layer))
