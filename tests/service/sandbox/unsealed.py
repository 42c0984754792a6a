"""Preloaded, makes the zygote's children what they are under a kernel that knows neither Landlock nor seccomp."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from service.sandbox import child


def _seal(folder: Path, code: Any, *, gpu: bool) -> list[str]:
    return []


child.seal = _seal
