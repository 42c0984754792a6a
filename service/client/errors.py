"""The one exception of the client."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from service.fields import FieldError

UNREACHABLE, DEADLINE = "unreachable", "deadline_exceeded"
"""Codes of errors without an answer of the server."""


class ClientError(Exception):
    """A request failed, or an analysis ended without a report.

    Args:
        detail: What was found, and where.
        code: Stable identifier: one of the service or the engine; ``unreachable`` if no server answers, and
            ``deadline_exceeded`` if the time of the call is up.
        status: HTTP status of the response; None if there is none, or an analysis ended without a report.
        advice: What to do about it; may be empty.
        errors: Errors by field, if fields of the request are invalid.
        analysis: Identifier of the analysis that the error is about.
        state: Final state of that analysis, if it ended without a report.
        details: Facts for programs.

    Attributes:
        retry_after: Seconds after which the server wants to be asked again; None if it does not say.

    Examples:
        >>> raise ClientError("The queue is full.", code="queue_full", status=429)
        Traceback (most recent call last):
        service.client.errors.ClientError: The queue is full. [queue_full]
    """

    def __init__(
        self,
        detail: str,
        *,
        code: str,
        status: int | None = None,
        advice: str = "",
        errors: Sequence[FieldError] = (),
        analysis: str | None = None,
        state: str | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.code = code
        self.status = status
        self.advice = advice
        self.errors = list(errors)
        self.analysis = analysis
        self.state = state
        self.details = dict(details or {})
        self.retry_after: float | None = None

    def __str__(self) -> str:
        fields = "".join(f"\n{item.pointer}: {item.detail}" for item in self.errors)
        return f"{self.detail}{fields} [{self.code}]" + (f"\n{self.advice}" if self.advice else "")


class OlderServerWarning(UserWarning):
    """A server does not know a part of a request, which was left out."""


def problem(status: int, body: bytes) -> ClientError:
    """Return the error that a response states; one that is no problem document comes from a proxy or another server."""
    try:
        found = json.loads(body)
        return ClientError(
            str(found["detail"]),
            code=str(found["code"]),
            status=status,
            advice=str(found.get("advice") or ""),
            errors=[FieldError(pointer=item["pointer"], detail=item["detail"]) for item in found.get("errors") or ()],
            analysis=found.get("analysis"),
            details=found.get("details"),
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return ClientError(f"The server answered {status}.", code=f"http_{status}", status=status)
