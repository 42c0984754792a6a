"""Headers that routes share: entity tags and Prefer."""

from __future__ import annotations

import re
from typing import Any

_WAIT = re.compile(r"""wait\s*=\s*"?(\d{1,9})"?\s*(?:;.*)?""", re.IGNORECASE)


def described(headers: dict[str, str]) -> dict[str, Any]:
    """Response headers with a sentence each, as the specification has them."""
    return {name: {"description": text, "schema": {"type": "string"}} for name, text in headers.items()}


def matches(if_none_match: str | None, etag: str) -> bool:
    """Whether If-None-Match names this entity tag; weak comparison, as RFC 9110 asks for here."""
    if if_none_match is None:
        return False
    if if_none_match.strip() == "*":
        return True
    tags = (tag.strip().removeprefix("W/") for tag in if_none_match.split(","))
    return etag.removeprefix("W/") in tags


def preferred_wait(prefer: str | None, limit: float) -> float | None:
    """Seconds of ``Prefer: wait=N`` (RFC 7240), at most ``limit``; None where there is no such preference."""
    for preference in (prefer or "").split(","):
        match = _WAIT.fullmatch(preference.strip())
        if match is not None:
            return min(float(match[1]), limit)
    return None
