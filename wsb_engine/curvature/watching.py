"""Looking at the operators that torch runs."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class OperatorWatch(TorchDispatchMode):
    """Is told of every operator that runs within its block."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # To have it skipped, torch imports its compiler, which takes more than a second; nothing here is compiled.
        return False

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
