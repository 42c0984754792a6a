"""Headers that routes share: media types, entity tags and Prefer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_WAIT = re.compile(r"""wait\s*=\s*"?(\d{1,9})"?\s*(?:;.*)?""", re.IGNORECASE)


def media_type(headers: Mapping[str, str]) -> str:
    """Return the media type of a body, in lower case and without parameters; empty if there is none."""
    return headers.get("content-type", "").split(";")[0].strip().lower()


def described(headers: dict[str, str]) -> dict[str, Any]:
    """Describe response headers for OpenAPI; each has one sentence."""
    return {name: {"description": text, "schema": {"type": "string"}} for name, text in headers.items()}


def matches(if_none_match: str | None, etag: str) -> bool:
    """Whether If-None-Match names this entity tag, by weak comparison (RFC 9110, 13.1.2)."""
    if if_none_match is None:
        return False
    if if_none_match.strip() == "*":
        return True
    tags = (tag.strip().removeprefix("W/") for tag in if_none_match.split(","))
    return etag.removeprefix("W/") in tags


def preferred_wait(prefer: str | None, limit: float) -> float | None:
    """Return the seconds of ``Prefer: wait=N`` (RFC 7240), at most ``limit``; None without that preference."""
    for preference in (prefer or "").split(","):
        match = _WAIT.fullmatch(preference.strip())
        if match is not None:
            return min(float(match[1]), limit)
    return None
