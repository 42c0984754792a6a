"""Watch the operators that torch runs."""

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
    """Name the model's operator that runs inside the block, for a watch, which sees only torch's operators.

    Args:
        name: Name in the model's file; None keeps torch's names.
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
    """Return the name of the model's operator that this thread is running."""
    return _RUNNING.name


class OperatorWatch(DispatchMode):
    """Sees every operator that runs inside its block."""

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
            operator: The operator, without its overload.
            args: Positional arguments.
            kwargs: Keyword arguments.
            result: A tensor or a tree of tensors.
        """
