"""Names of files as people gave them: to show, never to open."""

from __future__ import annotations

import re

MAX_FILE_NAME = 200
"""Most characters of a file's name that are kept."""


def shown_file_name(given: str | None) -> str | None:
    """Return the last component of a path without anything invisible, at most ``MAX_FILE_NAME`` characters of it.

    Returns:
        None if nothing is left of it.
    """
    component = re.split(r"[/\\]", given or "")[-1]
    return "".join(filter(str.isprintable, component)).strip()[:MAX_FILE_NAME] or None
