"""Errors of the engine: each has a code for programs and advice for people.

Codes are part of the public interface; the service maps them to HTTP problems. The message says what was found and
where, the advice what to do about it.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any


class EngineError(Exception):
    """Base class of the errors that the engine raises on purpose.

    Args:
        message: What was found, and where.
        code: Stable identifier in ``snake_case``.
        advice: What the caller can do about it.
        details: JSON-compatible facts for programs (node, domain, shapes, …).

    Examples:
        >>> import wsb
        >>> try:
        ...     wsb.load_model(b"not a model")
        ... except wsb.EngineError as error:
        ...     print(type(error).__name__, error.code)
        ModelError model_unrecognized
    """

    def __init__(self, message: str, *, code: str, advice: str, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.advice = advice
        self.details = details

    def __str__(self) -> str:
        return f"{self.message} [{self.code}] {self.advice}".rstrip()

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), self.message, code=self.code, advice=self.advice, **self.details), ()


class ModelError(EngineError):
    """The model can't be read, or it is of a kind that can't be analysed."""


class BatchError(EngineError):
    """The batch can't be read, or it does not fit the model."""


class OptionsError(EngineError):
    """The options ask for something that is impossible for this model or on this machine."""


class ResourceError(EngineError):
    """A limit (memory, time, the range of floating-point numbers) would be exceeded."""


def finite(value: float, what: str) -> float:
    """Return the value if it is finite.

    Raises:
        ResourceError: ``overflow`` if it is infinite or NaN.
    """
    if not math.isfinite(value):
        raise overflow(what)
    return value


def overflow(what: str) -> ResourceError:
    """Return the error for a number that is infinite or NaN."""
    return ResourceError(
        f"{what} overflows the working precision",
        code="overflow",
        advice="Use dtype float64, or rescale the inputs or weights.",
    )


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, short enough for a message; its type if it has no text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
