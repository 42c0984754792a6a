"""What the operands of a walk through the graph are, besides Python's own numbers, strings and containers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from wsb_engine.errors import ModelError
from wsb_engine.formats.torchscript import problems
from wsb_engine.formats.torchscript.graph import Operation
from wsb_engine.memory import ran_out

DTYPES: Mapping[int, torch.dtype] = {
    0: torch.uint8,
    1: torch.int8,
    2: torch.int16,
    3: torch.int32,
    4: torch.int64,
    5: torch.float16,
    6: torch.float32,
    7: torch.float64,
    11: torch.bool,
    15: torch.bfloat16,
}
"""Number of a dtype in TorchScript → dtype, for those that the reader computes with."""
NESTING = 64
"""Containers within containers."""
ITEMS = 1 << 20
"""Of a container and all within it."""
_KERNEL_FAILURES = (RuntimeError, ValueError, IndexError, TypeError, ArithmeticError, AttributeError)
_NUMBERS = {dtype: number for number, dtype in DTYPES.items()}


class Name(str):
    """Stands for a value that an earlier step makes; other strings are themselves."""

    __slots__ = ()


@dataclass(eq=False)
class Memory:
    """Elements that a tensor and its views share; ``writes`` counts operators that change them in place."""

    writes: int = 0


@dataclass(eq=False)
class Value:
    """A tensor, or something computed from one whose shape is not known.

    An operator that works in place gives the value a new name: everything that holds it sees the change. Views of it
    do not, so they must not be read afterwards; ``seen`` is how many writes to its memory a value takes into account.
    """

    name: str
    shadow: Tensor | None
    """A meta tensor, or None where the shape, or even the kind, is not known."""
    known: Tensor | None = None
    """Its elements, where it depends on neither parameters nor inputs; on the CPU."""
    trained: bool = False
    """Whether it depends on a parameter."""
    memory: Memory = field(default_factory=Memory)
    seen: int = 0
    merged: bool = False
    """Whether it stands for the result of a branch that is not decided yet; it may then be None."""

    @property
    def opaque(self) -> bool:
        return self.shadow is None

    @property
    def stale(self) -> bool:
        return self.seen != self.memory.writes


@dataclass(frozen=True, kw_only=True)
class Call:
    """What a kernel knows besides its arguments."""

    operation: Operation
    working: torch.dtype
    """The floating type that everything is computed in."""
    device: torch.device
    """Where a kernel makes new tensors; the meta device while shapes are planned."""

    def run(self, kernel: Callable[..., Any], arguments: Sequence[Any]) -> Any:
        """What a kernel makes of its arguments.

        Raises:
            ModelError: ``evaluation_failed`` where they don't fit. Running out of memory stays the error that it is.
        """
        try:
            return kernel(self, *arguments)
        except _KERNEL_FAILURES as error:
            if ran_out(error):
                raise
            shapes = [list(item.shape) for item in flattened(tuple(arguments)) if isinstance(item, Tensor)]
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise problems.evaluation_failed(
                self.operation.kind,
                self.operation.location,
                f"can't be applied to shapes {shapes}: {reason[0][:300]}",
            ) from error

    def dtype(self, number: int | None) -> torch.dtype | None:
        """A dtype of the graph, where every floating type is the working one.

        Raises:
            ModelError: ``unsupported_dtype`` for complex and quantised types.
        """
        if number is None:
            return None
        if number not in DTYPES:
            raise ModelError(
                f"operator {self.operation.kind} ({self.operation.location}) asks for dtype number {number}",
                code="unsupported_dtype",
                advice="Use floating, integer and boolean tensors.",
                operator=self.operation.kind,
            )
        found = DTYPES[number]
        return self.working if found.is_floating_point else found

    def unsupported(self, why: str) -> ModelError:
        """An error about a use of this operator that the reader does not have."""
        return problems.unsupported(self.operation.kind, self.operation.location, f"{why} is not supported")


def number_of(dtype: torch.dtype) -> int:
    """TorchScript's number of a dtype."""
    return _NUMBERS[dtype]


@dataclass(frozen=True)
class Step:
    """One kernel call of a walk."""

    call: Call
    kernel: Callable[..., Any] | None
    """None where the walk only notes that there is an operator here."""
    arguments: tuple[Any, ...]
    """Python values, with a ``Name`` for each value made before."""
    outputs: tuple[str, ...]
    """Names of the tensors made, lists of tensors laid out one after another."""
    trained: bool

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(found for found in flattened(self.arguments) if isinstance(found, Name)))


def flattened(value: Any) -> Iterator[Any]:
    """The items of nested lists, tuples and dictionaries.

    Raises:
        ModelError: ``model_too_complex`` for absurdly many, or absurdly deep ones.
    """
    pending = [iter((value,))]
    count = 0
    while pending:
        for item in pending[-1]:
            if isinstance(item, (list, tuple, dict)):
                pending.append(iter(item.values() if isinstance(item, dict) else item))
                if len(pending) > NESTING:
                    raise problems.too_complex("levels of nested containers", len(pending), NESTING)
                break
            count += 1
            if count > ITEMS:
                raise problems.too_complex("items in nested containers", count, ITEMS)
            yield item
        else:
            pending.pop()


def replaced(value: Any, change: Callable[[Any], Any]) -> Any:
    """The same nesting with each item changed."""
    if isinstance(value, list):
        return [replaced(item, change) for item in value]
    if isinstance(value, tuple):
        return tuple(replaced(item, change) for item in value)
    if isinstance(value, dict):
        return {key: replaced(item, change) for key, item in value.items()}
    return change(value)


def filled(arguments: Sequence[Any], *defaults: Any) -> tuple[Any, ...]:
    """The arguments, and defaults for those that are left out at the end."""
    return tuple(arguments[: len(defaults)]) + defaults[len(arguments) :]
