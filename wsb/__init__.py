"""Certified sharpness of trained classifiers, under the short name: what ``wsb_engine`` gives, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import wsb_engine

if TYPE_CHECKING:
    from wsb_engine import *  # noqa: F403

__all__ = wsb_engine.__all__


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(wsb_engine, name)


def __dir__() -> list[str]:
    return __all__
