"""The error of the sandbox itself, as opposed to errors of its jobs."""

from __future__ import annotations

from typing import Any


class SandboxError(Exception):
    """No child could be started or confined, or its result exceeds the frame limit.

    Args:
        message: What was found.
        code: Stable identifier in ``snake_case``.
        advice: What the caller can do about it.
        details: JSON-compatible facts for programs.
    """

    def __init__(self, message: str, *, code: str, advice: str, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.advice = advice
        self.details = details

    def __str__(self) -> str:
        return f"{self.message} [{self.code}] {self.advice}"
