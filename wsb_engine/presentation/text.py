"""Untrusted text made safe to show: names of tensors and operators come from files that anybody may have made."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import TypeVar

MAX_NAME = 80
"""Most characters of a name to show."""
MAX_TEXT = 1000
"""Most characters of any other text to show."""
MAX_MARKS = 4
"""Most combining marks in a row; more would cover the lines above and below."""

_UNSEEN = ("Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp")
"""Unicode categories that are invisible, or have no widely known form."""

Item = TypeVar("Item")


def clean(text: str, limit: int = MAX_TEXT) -> str:
    """Return one line of at most ``limit`` characters, with an ellipsis if it was cut.

    Nothing in the result is invisible or changes the order of later text: control, format and unassigned characters,
    surrogates and piles of combining marks become ``⟨U+202E⟩``, line ends and tabs become spaces. The result holds
    only characters that XML 1.0 allows.
    """
    shown: list[str] = []
    length = marks = 0
    for character in text:
        category = unicodedata.category(character)
        marks = marks + 1 if category in ("Mn", "Me") else 0
        if character in "\n\r\t":
            piece = " "
        elif category in _UNSEEN or marks > MAX_MARKS:
            piece = f"⟨U+{ord(character):04X}⟩"
        else:
            piece = character
        length += len(piece)
        if length > limit:
            return "".join(shown) + "…"
        shown.append(piece)
    return "".join(shown)


def name(text: str, limit: int = MAX_NAME) -> str:
    """Clean a name of a tensor, an operator or a metric; an empty one becomes ``(empty)``."""
    return clean(text, limit) if text.strip() else "(empty)"


def cut(items: Sequence[Item], limit: int) -> tuple[Sequence[Item], int]:
    """Return the first ``limit`` items, and how many more there are."""
    return items[:limit], max(0, len(items) - limit)
