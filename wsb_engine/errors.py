"""Errors of the engine: each has a code for programs and advice for people.

The codes are part of the public interface. A service maps them to its own error format; the text says
what was found and where, the advice says what to do about it.
"""

from __future__ import annotations

import math
from typing import Any


class EngineError(Exception):
    """Base class of everything the engine raises on purpose.

    Args:
        message: What was found, and where.
        code: Stable identifier in ``snake_case``.
        advice: What the caller can do about it.
        details: JSON-compatible facts for programs (node, domain, shapes, …).
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
        return (_rebuild, (type(self), self.message, self.code, self.advice, self.details))


def _rebuild(cls: type[EngineError], message: str, code: str, advice: str, details: dict[str, Any]) -> EngineError:
    return cls(message, code=code, advice=advice, **details)


class ModelError(EngineError):
    """The model file can't be read, or describes something that can't be analysed."""


class BatchError(EngineError):
    """The batch can't be read, or does not fit the model."""


class OptionsError(EngineError):
    """The options ask for something that this model or machine can't give."""


class ResourceError(EngineError):
    """A stated limit (memory, size) would be exceeded."""


def finite(value: float, what: str) -> float:
    """The value itself.

    Raises:
        ResourceError: ``overflow`` where it is infinite or NaN.
    """
    if not math.isfinite(value):
        raise overflow(what)
    return value


def overflow(what: str) -> ResourceError:
    """The error of a number that is infinite or NaN."""
    return ResourceError(
        f"{what} overflows the working precision",
        code="overflow",
        advice="Rescale the inputs or weights, or use dtype float64.",
    )
