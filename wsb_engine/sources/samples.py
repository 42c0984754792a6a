"""What every source returns, and how many bytes it may hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from wsb_engine.errors import BatchError

MAX_BYTES = 8 << 30
"""Limit on the bytes of all arrays of a batch, uncompressed."""

FloatOrInt = Literal["float32", "float64", "int64"]

Scaling = Literal["unit", "symmetric", "none"]

SCALINGS: dict[Scaling, tuple[float, float]] = {"unit": (255.0, 0.0), "symmetric": (127.5, 1.0), "none": (1.0, 0.0)}
"""Divisor of bytes, and what is then subtracted."""

ProgressSink = Callable[[str, float], None]
"""Called with the name of a phase and the fraction of it that is done."""


@dataclass(frozen=True, eq=False)
class Samples:
    """Inputs and labels of N samples, not yet checked."""

    x: Mapping[str, NDArray[Any]]
    """Input arrays (N, …) by name."""
    y: NDArray[Any]
    """Labels (N,), or probabilities (N, C)."""
    classes: tuple[str, ...] | None = None
    """Names of the classes 0, 1, …; None if the source has no names, or y holds them."""
    notes: tuple[tuple[str, str], ...] = ()
    """What the source left to judgement, as pairs of a word and a sentence."""


def require_room(rows: int, row_bytes: int) -> None:
    """Raise before anything is allocated if that many rows are too large for a batch.

    Raises:
        BatchError: ``batch_too_large``; the advice says how many rows fit.
    """
    if rows * row_bytes > MAX_BYTES:
        fit = MAX_BYTES // row_bytes
        raise BatchError(
            f"{rows:,} rows of {row_bytes:,} bytes are more than the limit of {MAX_BYTES:,} bytes",
            code="batch_too_large",
            advice=f"Take a random subset: --rows {fit}." if fit else "Make the inputs smaller.",
            limit=MAX_BYTES,
        )


def named(samples: Samples, names: tuple[str, ...]) -> Samples:
    """Return the samples with other names for their inputs, in order.

    Raises:
        BatchError: ``input_names_mismatch``.
    """
    if len(names) != len(samples.x) or len(set(names)) != len(names) or {"y", "weights", ""} & set(names):
        raise BatchError(
            f"{len(names)} names ({', '.join(names)}) do not name {len(samples.x)} inputs",
            code="input_names_mismatch",
            advice="Give each input one name, other than y and weights.",
        )
    return replace(samples, x=dict(zip(names, samples.x.values(), strict=True)))


def scaled(values: NDArray[Any], scaling: Scaling) -> NDArray[np.float32]:
    """Return bytes as float32 from 0 to 1 (unit), from −1 to 1 (symmetric) or as they are (none)."""
    divisor, shift = SCALINGS[scaling]
    result: NDArray[np.float32] = values.astype(np.float32)
    result /= np.float32(divisor)
    result -= np.float32(shift)
    return result


def with_scaling(samples: Samples, scaling: Scaling) -> Samples:
    """Return the samples with inputs of bytes scaled.

    Raises:
        BatchError: ``inputs_not_bytes``.
    """
    for name, array in samples.x.items():
        if array.dtype != np.uint8:
            raise BatchError(
                f"array {name!r} has dtype {array.dtype}, and only bytes (uint8) can be scaled",
                code="inputs_not_bytes",
                advice="Leave --scaling out, or scale the array before saving it.",
                array=name,
            )
    return replace(samples, x={name: scaled(array, scaling) for name, array in samples.x.items()})


def with_dtype(samples: Samples, dtype: FloatOrInt) -> Samples:
    """Return the samples with floating-point inputs converted; integers and booleans stay as they are.

    Raises:
        BatchError: ``batch_not_finite`` if a number is too large for the dtype, ``inputs_not_whole``.
    """
    return replace(samples, x={name: _converted(name, array, dtype) for name, array in samples.x.items()})


def _converted(name: str, array: NDArray[Any], dtype: FloatOrInt) -> NDArray[Any]:
    if array.dtype.kind != "f" or array.dtype == dtype:
        return array
    with np.errstate(over="ignore", invalid="ignore"):
        converted = array.astype(dtype)
    if dtype == "int64":
        differing = ~(array == converted)
        if differing.any():
            raise BatchError(
                f"array {name!r} holds {array[differing][0]!s}, which is not an integer of 64 bits",
                code="inputs_not_whole",
                advice="Leave --dtype out, or take the columns with fractions out.",
                array=name,
            )
    elif not np.isfinite(converted).all() and np.isfinite(array).all():
        raise BatchError(
            f"array {name!r} holds numbers beyond the range of {dtype}",
            code="batch_not_finite",
            advice="Keep them with --dtype float64.",
            array=name,
        )
    return converted
