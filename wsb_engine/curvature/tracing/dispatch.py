"""Looking at the operators that torch runs."""

from __future__ import annotations

import threading
from abc import abstractmethod
from types import TracebackType
from typing import Any

from wsb_engine.internals import DispatchMode


class _Running(threading.local):
    name: str | None = None


_RUNNING = _Running()


class Running:
    """Names what a model's own operator runs within the block, for a watch: it is torch's operators that are watched.

    Args:
        name: Name in the model's file; None leaves torch's names.
    """

    __slots__ = ("_before", "_name")

    def __init__(self, name: str | None) -> None:
        self._name = name
        self._before: str | None = None

    def __enter__(self) -> None:
        self._before, _RUNNING.name = _RUNNING.name, self._name

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _RUNNING.name = self._before


def running() -> str | None:
    """The name of the model's operator that this thread is running."""
    return _RUNNING.name


class OperatorWatch(DispatchMode):
    """Is told of every operator that runs within its block."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        result = function(*args, **named)
        self.ran(function.overloadpacket, args, named, result)
        return result

    @abstractmethod
    def ran(self, operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Called after each operator.

        Args:
            operator: Without its overload.
            args, kwargs: What it was given.
            result: A tensor, or a tree of them.
        """
