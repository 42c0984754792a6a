"""What `wsb doctor` finds."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

Check = Literal["versions", "keys", "limits", "memory", "disk", "devices", "sandbox", "database", "workers", "storage"]
Level = Literal["ok", "warning", "problem"]


class Finding(BaseModel):
    """One thing that was looked at."""

    check: Check
    level: Level
    detail: str
    """What was found."""
    advice: str = ""
    """What to do about it; empty if there is nothing to do."""


def ok(check: Check, detail: str) -> Finding:
    return Finding(check=check, level="ok", detail=detail)


def warning(check: Check, detail: str, advice: str) -> Finding:
    """Something works for now, or only in part."""
    return Finding(check=check, level="warning", detail=detail, advice=advice)


def problem(check: Check, detail: str, advice: str) -> Finding:
    """The service can't work like this."""
    return Finding(check=check, level="problem", detail=detail, advice=advice)
