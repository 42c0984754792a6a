"""From the labels that people write to class indices."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsb_engine.errors import BatchError

MAX_CLASSES = 100_000
"""Largest number of different labels."""

_TRUTH = ("false", "true")
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}(\.0*)?")


def numbering(labels: Iterable[str], classes: Sequence[str] | None) -> tuple[dict[str, int], tuple[str, ...] | None]:
    """Return the number of each label, and the names of the classes 0, 1, … if the numbers are indices of names.

    Integers stay as they are, false is 0 and true is 1, and other text is numbered in sorted order; a list of classes
    numbers any of them by its own order.

    Args:
        labels: Different labels.
        classes: Names of all classes, in the order of the model's logits; None to derive them.

    Raises:
        BatchError: ``classes_invalid``, ``labels_unknown``, ``labels_not_classes``, ``too_many_classes``.
    """
    found = sorted(labels)
    require_few(len(found))
    if classes is not None:
        return _listed(found, classes)
    if all(_INTEGER.fullmatch(label) for label in found):
        return {label: int(label.partition(".")[0]) for label in found}, None
    if found and all(label.lower() in _TRUTH for label in found):
        return {label: _TRUTH.index(label.lower()) for label in found}, _TRUTH
    if all(_is_number(label) for label in found):
        fraction = next(label for label in found if not _INTEGER.fullmatch(label))
        raise BatchError(
            f"the labels are numbers such as {fraction}, not classes",
            code="labels_not_classes",
            advice="Name the column of the classes; for classes that are written so, list them with --classes.",
        )
    return {label: index for index, label in enumerate(found)}, tuple(found)


def _listed(found: Sequence[str], classes: Sequence[str]) -> tuple[dict[str, int], tuple[str, ...]]:
    names = tuple(classes)
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise BatchError(
            f"class {twice!r} is listed twice", code="classes_invalid", advice="List each class once, in logit order."
        )
    numbers = {name: index for index, name in enumerate(names)}
    if unknown := [label for label in found if label not in numbers]:
        raise BatchError(
            f"{len(unknown)} labels are not in the list of classes: {', '.join(unknown[:10])}",
            code="labels_unknown",
            advice="List every class that occurs, in the order of the model's logits.",
        )
    return numbers, names


def require_few(count: int) -> None:
    """Raise BatchError ``too_many_classes`` if there are more different labels than any classifier has."""
    if count > MAX_CLASSES:
        raise BatchError(
            f"there are more than {MAX_CLASSES:,} different labels",
            code="too_many_classes",
            advice="Name the column of the classes, not one of identifiers.",
            limit=MAX_CLASSES,
        )


def text_of(y: NDArray[Any]) -> NDArray[np.str_] | None:
    """Return labels as text if they are text (of numpy, bytes or objects), otherwise None.

    Raises:
        BatchError: ``missing_values``.
    """
    if y.dtype.kind == "S":
        return np.char.decode(y, "utf-8", "replace")
    if y.dtype.hasobject and y.ndim == 1:
        for row, label in enumerate(y):
            if not isinstance(label, str):
                raise BatchError(
                    f"the label in row {row} is {label!r}, and others are text",
                    code="missing_values",
                    advice="Remove the rows without a label, and convert the labels to one dtype.",
                    row=row,
                )
        return y.astype(np.str_)
    return y if y.dtype.kind == "U" else None


def _is_number(label: str) -> bool:
    try:
        float(label)
    except ValueError:
        return False
    return True
