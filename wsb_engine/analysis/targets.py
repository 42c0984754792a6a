"""From the labels of a batch, and what a model gives for a sample, to the targets of a loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsb_engine.batch import Batch
from wsb_engine.curvature.losses import Loss, Output, Targets, configured
from wsb_engine.curvature.products.autodiff import Logits, Objective
from wsb_engine.errors import BatchError, ModelError
from wsb_engine.formats.graph.logits import several_rows
from wsb_engine.model import Form, Tensors
from wsb_engine.options import LossOption, Options

SIMPLEX_TOLERANCE = 1e-4
"""Largest distance of a row's sum of probabilities from 1 (float16 and float32 files round); the loss rescales rows."""
SMALLEST_TOTAL = 1e-100
"""Least weight of all samples that count, beside 1: squares of its inverse are still numbers."""
TORCH_IGNORES = -100
"""Label that torch's cross-entropy ignores by default, and that collators mark padding with."""


def wanted(batch: Batch, options: Options) -> LossOption:
    """Return the loss of the options; for ``auto`` the one per position if y has several class indices a sample."""
    several = batch.y.ndim > 1 and batch.y.dtype.kind == "i" and not _is_one_hot(batch.y)
    return "token_cross_entropy" if options.loss == "auto" and several else options.loss


def _is_one_hot(y: NDArray[np.int64]) -> bool:
    return y.ndim == 2 and bool((y >= 0).all() and (y.sum(axis=1) == 1).all())


def ignored_label(options: Options, form: Form) -> int | None:
    """Return the label that does not count; None if there is none."""
    if options.ignore_index is None and form == "positions":
        return TORCH_IGNORES
    return options.ignore_index


def counting_rows(batch: Batch, options: Options) -> NDArray[np.int64]:
    """Return the indices of samples that have a weight, and a label that counts, as far as the options tell."""
    counts = np.ones(len(batch), dtype=bool) if batch.weights is None else batch.weights > 0
    y, ignored = batch.y, ignored_label(options, "positions" if batch.y.ndim > 1 else "row")
    if y.dtype.kind == "i":
        labelled = np.ones(y.shape, dtype=bool) if ignored is None else y != ignored
        if options.class_weights is not None:
            known = (y >= 0) & (y < len(options.class_weights))
            labelled &= ~known | (np.array(options.class_weights)[np.where(known, y, 0)] > 0)
        counts &= labelled.reshape(len(y), -1).any(axis=1)
    return np.flatnonzero(counts)


def flattened(function: Logits) -> Logits:
    """Return a function whose output (N, …) is flattened to (N, C)."""

    def logits(parameters: Tensors, inputs: Tensors) -> Tensor:
        z = function(parameters, inputs)
        return z.reshape(len(z), -1)

    return logits


def in_rows(
    objective: Objective, batch: Batch, options: Options, told: int | None, warn: Callable[[str, str], None]
) -> Objective:
    """Return the objective with an output of any shape as one row for each sample, and the loss for that shape.

    Args:
        objective: Its loss has another form than a row.
        batch, options: Of the analysis.
        told: Axis over which the model's softmax normalises; None if unknown.
        warn: Adds a code and a message to the report.

    Raises:
        ModelError: ``unsupported_output``, and those of ``class_axis``.
        BatchError, OptionsError: as ``_require_same_axes``, ``class_axis`` and ``Loss.configured``.
    """
    # Not one sample if there are more: operators on whole batches may refuse a single one.
    rows = torch.arange(objective.group if objective.group > 1 else min(2, objective.samples))
    with torch.no_grad():
        shape = tuple(objective.logits(rows % objective.samples).shape)
    sizes, of_positions = shape[1:], objective.loss.form == "positions"
    if shape[:1] != (len(rows),) or 0 in sizes or (of_positions and not sizes):
        raise several_rows("the model's output", shape, "unsupported_output")
    axis, is_open = class_axis(sizes, batch.y.shape[1:], told) if of_positions else (-1, False)
    if is_open:
        warn(
            "class_axis_assumed",
            f"an output {list(shape)} may have its classes on the last axis or on the second: they are taken to be on "
            f"axis {axis + 1}",
        )
    if not of_positions:
        _require_same_axes(batch.y.shape[1:], sizes)
    output = Output(sizes, axis, prod(sizes) // sizes[axis] if of_positions else 1)
    loss = configured(objective.loss.kind, options, output)
    return replace(objective, function=flattened(objective.function), loss=loss)


def _require_same_axes(labels: tuple[int, ...], sizes: tuple[int, ...]) -> None:
    """Refuse labels as many as outputs that have other axes: they would be compared in the wrong order.

    Raises:
        BatchError: ``labels_shape``.
    """
    labels_, sizes_ = (tuple(size for size in shape if size != 1) for shape in (labels, sizes))
    if prod(labels) == prod(sizes) and labels_ not in (sizes_, (prod(sizes),)):
        raise BatchError(
            f"y has the shape {['N', *labels]}, the model's output {['N', *sizes]}",
            code="labels_shape",
            advice="Give y the shape of the model's output, or with all axes but the first flattened.",
        )


def class_axis(sizes: Sequence[int], labels: Sequence[int], told: int | None) -> tuple[int, bool]:
    """Find the axis of a sample's output with the classes.

    Args:
        sizes: Shape of the output of one sample.
        labels: Shape of its labels: that of the other axes, or these flattened.
        told: Axis over which the model's softmax normalises, counted with the axis of samples; None if unknown.

    Returns:
        The axis, and whether another one would fit as well. Then it is the last of tokens [T, C] and the first of
        pixels [C, H, W].

    Raises:
        ModelError: ``unsupported_head`` if the softmax is over the samples or over an inner axis.
        BatchError: ``labels_shape`` if none fits.
    """
    last = len(sizes) - 1
    axes = [last, 0] if last < 2 else [0, last]
    if told is not None:
        axis = told % (len(sizes) + 1) - 1
        if axis not in axes:
            raise ModelError(
                f"the model's softmax normalises over axis {told} of its output, not over the classes of a position",
                code="unsupported_head",
                advice="Export the model with the classes on its last axis, or on the second.",
                axis=told,
            )
        axes = [axis]
    fitting = [axis for axis in dict.fromkeys(axes) if _fits([*sizes[:axis], *sizes[axis + 1 :]], labels)]
    if not fitting:
        raise BatchError(
            f"a sample has labels of shape {list(labels)}, and the model's output for it has shape {list(sizes)}",
            code="labels_shape",
            advice="Give one integer label for each position: y [N, T] for an output [N, T, C], y [N, H, W] for "
            "[N, C, H, W]. If y has a number for each logit instead, set the loss that the model was trained with.",
            labels=list(labels),
            output=list(sizes),
        )
    return fitting[0], len(fitting) > 1


def _fits(positions: list[int], labels: Sequence[int]) -> bool:
    return list(labels) == positions or (len(labels) <= 1 and prod(labels) == prod(positions))


@dataclass(frozen=True)
class _Read:
    """Labels as the loss takes them."""

    y: NDArray[Any]
    weights: NDArray[np.float64] | None
    """(N,) not normalised; None if all are equal."""
    ignored: int = 0
    """Labels that do not count."""


def targets(
    batch: Batch, loss: Loss, logits: int, classes: tuple[int | str, ...] | None, options: Options, on: torch.device
) -> Targets:
    """Return labels as the loss takes them, and weights of sum 1.

    Args:
        batch: The batch, for its y and weights.
        loss: The loss, configured.
        logits: C, or 1 for one binary logit.
        classes: Labels that the model declares, in logit order.
        options: Options, for the label that does not count.
        on: Device of the targets.

    Raises:
        BatchError: ``labels_out_of_range``, ``labels_unknown``, ``label_classes_mismatch``, ``labels_shape``,
            ``labels_not_probabilities``, ``labels_not_classes``, ``labels_ignored``, ``weights_too_small``.
    """
    ignored = ignored_label(options, loss.form)
    count = loss.classes(logits) or 0
    match loss.form:
        case "positions":
            read = _positions(batch, count, ignored)
        case "labels":
            read = _Read(_shares(batch, logits), batch.weights)
        case "values":
            read = _Read(_numbers(batch, logits), batch.weights)
        case _:
            read = _classes(batch, count, classes, ignored)
    y = torch.from_numpy(read.y).to(on)
    loss.targets(y[:1], logits)  # raises before any long computation
    weights = _normalised(read.weights, len(batch), on)
    mass = loss.mass(y)
    total = 1.0 if mass is None else float((weights * mass).sum())
    if not total:
        raise _nothing_counts()
    if total < SMALLEST_TOTAL:
        raise BatchError(
            f"the labels that count have the weight {total:g}, beside 1 for all samples and classes",
            code="weights_too_small",
            advice="Give samples and classes that occur at least 1e-100 of the largest weight, or 0.",
        )

    def as_rows(labels: Tensor) -> Tensor:
        # The mean divides by the mass of all samples, and weights have the sum 1.
        rows = loss.targets(labels, logits)
        return rows if mass is None else rows / total

    return Targets(y, weights, as_rows, read.ignored, ignored if "ignore_index" in loss.settings else None)


def _nothing_counts() -> BatchError:
    return BatchError(
        "no label of the batch counts: each is ignored, or of a class or sample with weight 0",
        code="labels_ignored",
        advice="Send samples with labels that count, or change ignore_index or class_weights.",
    )


def _normalised(weights: NDArray[np.float64] | None, samples: int, on: torch.device) -> Tensor:
    """Return weights of sum 1, (N,) float64; equal ones take the memory of a single number."""
    if weights is None:
        return torch.tensor(1 / samples, dtype=torch.float64, device=on).expand(samples)
    given = torch.from_numpy(weights).to(on, torch.float64)
    return given / given.sum()


def _classes(batch: Batch, count: int, declared: tuple[int | str, ...] | None, ignored: int | None) -> _Read:
    """Read class indices (N,), or probabilities (N,) or (N, C)."""
    y, weights = batch.y, batch.weights
    if y.ndim > 2:
        raise BatchError(
            f"y has shape {list(y.shape)}, and the model gives one row of logits for each sample",
            code="labels_shape",
            advice="Give integer labels [N], or probabilities [N, C].",
        )
    if y.dtype.kind == "f" or y.ndim == 2:
        if ignored is not None:
            raise BatchError(
                "y holds probabilities, none of which ignore_index can mark",
                code="labels_not_classes",
                advice="Leave ignore_index out and give samples without a label weight 0, or give class labels.",
            )
        y = y.astype(np.float64, copy=False)
        _require_probabilities(y)
        return _Read(y, weights)
    skipped = np.zeros(len(y), dtype=bool) if ignored is None or y.dtype.kind == "U" else y == ignored
    counted = ~skipped if weights is None else ~skipped & (weights > 0)
    if not counted.any():
        raise _nothing_counts()
    if skipped.any():
        weights = np.where(skipped, 0.0, 1.0 if weights is None else weights)
    indices = _class_indices(y, None if weights is None else counted, count, declared)
    return _Read(indices, weights, int(skipped.sum()))


def _positions(batch: Batch, count: int, ignored: int | None) -> _Read:
    """Read class indices of positions (N, T), −1 where they do not count."""
    y, weights = batch.y.reshape(len(batch.y), -1), batch.weights
    if y.dtype.kind == "f" and (y == np.floor(y)).all():
        y = y.astype(np.int64)
    if y.dtype.kind != "i":
        raise BatchError(
            f"y holds {'text' if y.dtype.kind == 'U' else 'numbers that are no classes'}",
            code="labels_not_classes",
            advice="Give one integer label for each position, counted from 0 in the order of the logits.",
        )
    skipped = np.zeros(y.shape, dtype=bool) if ignored is None else y == ignored
    counted = ~skipped if weights is None else ~skipped & (weights > 0)[:, None]
    flat = _class_indices(y.reshape(-1), counted.reshape(-1), count, None, positions=y.shape[1])
    return _Read(np.where(skipped, -1, flat.reshape(y.shape)), weights, int(skipped.sum()))


def _numbers(batch: Batch, logits: int) -> NDArray[np.float64]:
    """Read a number for each logit, (N, C)."""
    y = batch.y.reshape(len(batch.y), -1)
    if y.dtype.kind == "U" or y.shape[1] != logits:
        found = "text" if y.dtype.kind == "U" else f"{y.shape[1]} numbers for each sample"
        raise BatchError(
            f"y holds {found}, the model gives {logits} outputs for each",
            code="label_classes_mismatch",
            advice="Give y the shape of the model's output, with a number for each of its elements.",
            expected=logits,
            actual=y.shape[1],
        )
    return y.astype(np.float64)


def _shares(batch: Batch, logits: int) -> NDArray[np.float64]:
    """Read a zero or one, or a probability, for each logit, (N, C)."""
    y = _numbers(batch, logits)
    outside = (y < 0) | (y > 1)
    if batch.weights is not None:
        outside &= (batch.weights > 0)[:, None]
    if outside.any():
        row = int(np.argwhere(outside)[0][0])
        raise BatchError(
            f"row {row} of y holds {y[outside][0]:g}, which is no probability",
            code="labels_not_probabilities",
            advice="Give 1 for each label that is true and 0 for each that is not, or probabilities between them.",
            row=row,
        )
    return np.clip(y, 0.0, 1.0)


def _class_indices(
    y: NDArray[Any],
    counted: NDArray[np.bool_] | None,
    count: int,
    classes: tuple[int | str, ...] | None,
    positions: int = 1,
) -> NDArray[Any]:
    """Return positions 0..C−1 of labels; 0 where the weight is 0, whatever the label.

    Args:
        y: (N,) labels.
        counted: (N,) False where the weight is 0; None if no weight is.
        count: C.
        classes: Labels that the model declares, in logit order.
        positions: Number of labels of a sample.
    """
    if classes is not None:
        indices: Mapping[int | str, int] = {label: index for index, label in enumerate(classes)}
        values = [value.item() for value in y]
        unknown = (i for i, value in enumerate(values) if value not in indices)
        row = next((i for i in unknown if counted is None or counted[i]), None)
        if row is not None:
            raise BatchError(
                f"label {values[row]!r} in row {row} is none of the model's classes {list(classes)[:20]}",
                code="labels_unknown",
                advice="Use the class labels that the model was trained with.",
                label=values[row],
                row=row,
            )
        return np.array([indices.get(value, 0) for value in values], dtype=np.int64)
    if y.dtype.kind == "U":
        raise BatchError(
            "y holds strings, but the model declares no class labels",
            code="labels_unknown",
            advice="Give integer labels, counted from 0 in the order of the logits.",
        )
    outside = (y < 0) | (y >= count)
    bad = np.flatnonzero(outside if counted is None else outside & counted)
    if len(bad):
        label, row = int(y[bad[0]]), int(bad[0]) // positions
        raise BatchError(
            f"label {label} in row {row} is outside 0..{count - 1}; {len(bad)} {'rows' if positions == 1 else 'labels'}"
            " are",
            code="labels_out_of_range",
            advice=_unlabelled(label, positions)
            if label < 0
            else "Count labels from 0, one for each logit of the model.",
            row=row,
            label=label,
            classes=count,
        )
    return y if counted is None else np.where(counted, y, 0)


def _unlabelled(label: int, positions: int) -> str:
    if positions > 1:
        return f"Set ignore_index to {label} if it marks positions without a label; otherwise count classes from 0."
    return (
        f"A negative label (-100, -1) often marks a sample without one: set ignore_index to {label}. Or drop these "
        "rows: keep = y >= 0; x, y = x[keep], y[keep]. Or give them weight 0: weights = (y >= 0).astype(float). If the "
        "classes are counted from another number, count them from 0."
    )


def _require_probabilities(y: NDArray[np.float64]) -> None:
    """Raise BatchError ``labels_not_probabilities`` unless all are, and rows of several sum to 1."""
    sums = y.sum(axis=1) if y.ndim == 2 else np.ones(len(y))
    outside = (y < 0).any() or (y > 1 + SIMPLEX_TOLERANCE).any()
    if outside or (np.abs(sums - 1) > SIMPLEX_TOLERANCE).any():
        row = int(np.argmax(np.abs(sums - 1))) if not outside else int(np.argwhere((y < 0) | (y > 1))[0][0])
        raise BatchError(
            f"row {row} of y is not a probability distribution",
            code="labels_not_probabilities",
            advice="Floating y must hold rows of non-negative numbers that sum to 1; cast class labels to integers.",
            row=row,
        )
