"""Text of strangers made safe to look at. Names of tensors and operators come from files that anybody may have made."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import TypeVar

MAX_NAME = 80
"""Characters of a name that are shown."""
MAX_TEXT = 1000
"""Characters of any other text that are shown."""
MAX_MARKS = 4
"""Combining marks in a row that are shown as such; more would cover the lines above and below."""

_UNSEEN = ("Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp")
"""Categories of Unicode that are not drawn, or have no form that everybody knows."""

Item = TypeVar("Item")


def clean(text: str, limit: int = MAX_TEXT) -> str:
    """One line of at most ``limit`` characters, and a sign where more were cut off.

    Nothing in it is invisible or changes the order of what follows: control, format and unassigned characters,
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
    """A name of a tensor, an operator or a metric; an empty one is said to be empty."""
    return clean(text, limit) if text.strip() else "(empty)"


def cut(items: Sequence[Item], limit: int) -> tuple[Sequence[Item], int]:
    """The first ``limit`` items, and how many more there are."""
    return items[:limit], max(0, len(items) - limit)
