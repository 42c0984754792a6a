"""How a command ends."""

from __future__ import annotations

import sys
from enum import IntEnum
from typing import NoReturn

import typer


class Exit(IntEnum):
    """Exit codes of every command."""

    DONE = 0
    FAILED = 1
    INVALID = 2
    NOT_EVALUATED = 3
    INTERRUPTED = 130


def end(text: str, code: Exit) -> NoReturn:
    """End the command with a message on stderr."""
    sys.stderr.write(f"{text}\n")
    raise typer.Exit(code)
