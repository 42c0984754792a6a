"""What a head is, and the logits z under it, of which the cross-entropy is taken."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from wsb_engine.errors import ModelError
from wsb_engine.model import Form

Finish = Literal["none", "log", "logit", "log_sigmoid"]
FINISHES: Mapping[Finish, Callable[[Tensor], Tensor]] = {
    "none": lambda rows: rows,
    "log": torch.log,
    "logit": lambda rows: torch.log(rows) - torch.log1p(-rows),
    "log_sigmoid": functional.logsigmoid,
}
"""What remains to be applied to a value to reach the logits."""
PROBABILITY_TOLERANCE = 1e-5
"""How far from 1 the sum of a row of probabilities may be, single precision and many classes included."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """What follows the logits: z is ``finish`` applied to ``tensor``, as a matrix of one row for each sample."""

    tensor: str
    finish: Finish = "none"
    name: str = "none"
    """What was taken off the output."""
    single: bool = False
    """True if there must be one column: the logit of class 1 of two."""
    classes: tuple[int | str, ...] | None = None
    form: Form = "row"
    """What the loss takes for logits; in other forms than a row, z has the shape of the tensor."""
    axis: int | None = None
    """Axis over which a softmax was taken off, for positions; None if none was."""


def logits_of(head: Head, value: Tensor) -> Tensor:
    """z of shape (N, C), or in other forms than a row of the tensor's shape, from the head's tensor.

    Raises:
        ModelError: ``per_token_output`` or ``per_pixel_output`` if a sample has several rows of logits,
            ``unsupported_head`` if it has none, ``multilabel_unsupported``.
    """
    if head.form != "row" and value.ndim:
        return FINISHES[head.finish](value)
    if value.ndim == 0 or sum(size > 1 for size in value.shape[1:]) > 1:
        raise several_rows(f"{head.tensor!r}", tuple(value.shape), "unsupported_head")
    rows = value.reshape(value.shape[0], -1)
    if head.single:
        require_single(rows.shape[1])
    return FINISHES[head.finish](rows)


def require_single(columns: int) -> None:
    """Raise ModelError ``multilabel_unsupported`` unless a head of one probability has one column."""
    if columns != 1:
        raise multilabel(columns)


def several_rows(what: str, shape: tuple[int, ...], code: str) -> ModelError:
    """Return the error for an output that is not one row of logits for each sample.

    Args:
        what: How the message names the output.
        shape: Its shape.
        code: Code of the error for a shape that no kind of classifier gives.
    """
    advice = "Analyse a model that gives one distribution over classes for each sample, or name another output."
    kinds = {
        3: ("token", "[N, T, C]", "[:, 0]", "[N, T]"),
        4: ("pixel", "[N, C, H, W]", "[:, :, 0, 0]", "[N, H, W]"),
    }
    if len(shape) not in kinds:
        return ModelError(
            f"{what} has shape {list(shape)}, not one row of logits for each sample",
            code=code,
            advice=advice,
            shape=list(shape),
        )
    unit, axes, first, labels = kinds[len(shape)]
    return ModelError(
        f"{what} has shape {list(shape)}, which is {axes}: one row of logits for each {unit}, not for each sample",
        code=f"per_{unit}_output",
        advice=f"If the model was trained with a label for each {unit}, set loss to token_cross_entropy and give these "
        f"labels as y, {labels}. To analyse one {unit} of each sample, export a module that returns its row of logits, "
        f"for example model(x){first}, and give its labels as y.",
        shape=list(shape),
    )


def multilabel(columns: int) -> ModelError:
    """Return the error for a sigmoid for each class, which is not one distribution over the classes."""
    return ModelError(
        f"the model gives {columns} independent probabilities (a sigmoid each), which is not one distribution",
        code="multilabel_unsupported",
        advice="If each label was trained by itself, set loss to multilabel and give zeros and ones, y [N, C]; if "
        'exactly one class is true, export the logits and use head "logits".',
        columns=columns,
    )


def one_number() -> ModelError:
    """Return the error for one output of which nothing says whether it is a logit or a probability."""
    return ModelError(
        "the model gives one number for each sample; the graph does not say whether it is a logit",
        code="ambiguous_head",
        advice='Say it with the option head: "binary_logit" or "binary_probability".',
    )


def looks_like_probabilities(z: Tensor) -> bool:
    """True if every row of outputs (N, C), C ≥ 2, is non-negative and sums to 1 as probabilities do."""
    return bool(z.shape[1] > 1 and (z >= 0).all() and ((z.sum(dim=1) - 1).abs() < PROBABILITY_TOLERANCE).all())
