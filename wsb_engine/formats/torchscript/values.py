"""What the operands of a walk through the graph are, besides Python's own numbers, strings and containers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from wsb_engine.errors import ModelError
from wsb_engine.formats.graph import plan
from wsb_engine.formats.torchscript import problems
from wsb_engine.formats.torchscript.graph import Operation

_REAL = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.float32, torch.float64)
DTYPES: Mapping[int, torch.dtype] = {**dict(enumerate(_REAL)), 11: torch.bool, 15: torch.bfloat16}
"""Number of a dtype in TorchScript → dtype, for those that the reader computes with."""
NUMBERS: Mapping[torch.dtype, int] = {dtype: number for number, dtype in DTYPES.items()}


@dataclass(eq=False)
class Memory:
    """Elements that a tensor and its views share; ``writes`` counts operators that change them in place."""

    writes: int = 0


@dataclass(frozen=True, eq=False)
class View:
    """How a tensor was taken out of another one whose memory it shares."""

    base: Value
    operator: str
    arguments: tuple[Any, ...]
    """Those of the operator after the base."""


@dataclass(eq=False)
class Value(plan.Value):
    """A tensor, or something computed from one whose shape is not known.

    An operator that works in place gives the value a new name: everything that holds it sees the change, and so do the
    tensors that it is a view of. Other views do not, so they must not be read afterwards; ``seen`` is how many writes
    to its memory a value takes into account.
    """

    trained: bool = False
    """Whether it depends on a parameter."""
    memory: Memory = field(default_factory=Memory)
    seen: int = 0
    view: View | None = None
    """Set if writing to this tensor can be repeated on the one that it is a view of."""
    merged: bool = False
    """Whether it stands for the result of a branch that is not decided yet; it may then be None."""

    @property
    def opaque(self) -> bool:
        return self.shadow is None

    @property
    def stale(self) -> bool:
        return self.seen != self.memory.writes


@dataclass(frozen=True, kw_only=True)
class Call(plan.Call[Operation]):
    """What a kernel knows besides its arguments."""

    plain = problems.TO_ONNX

    def dtype(self, number: int | None) -> torch.dtype | None:
        """Return a dtype of the graph; every floating type becomes the working one.

        Raises:
            ModelError: ``unsupported_dtype`` for complex and quantised types.
        """
        if number is None:
            return None
        if number not in DTYPES:
            raise ModelError(
                f"{self.node.label} asks for dtype number {number}",
                code="unsupported_dtype",
                advice="Use floating, integer and boolean tensors.",
                operator=self.node.kind,
            )
        found = DTYPES[number]
        return self.working if found.is_floating_point else found


def filled(arguments: Sequence[Any], *defaults: Any) -> tuple[Any, ...]:
    """Return the arguments, and defaults for those that are left out at the end."""
    return tuple(arguments[: len(defaults)]) + defaults[len(arguments) :]
