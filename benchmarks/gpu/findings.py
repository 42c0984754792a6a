"""What a check of a GPU found."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, what came out, and what it should be."""

    name: str
    measured: str
    target: str = ""
    """Empty if there is none."""
    met: bool | None = None
    """None if there is no target."""

    def __str__(self) -> str:
        mark = {True: "met", False: "MISSED", None: ""}[self.met]
        return f"{mark:<7} {self.name}: {self.measured}" + (f" (target: {self.target})" if self.target else "")


def short(seconds: float) -> str:
    """Format a time."""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
