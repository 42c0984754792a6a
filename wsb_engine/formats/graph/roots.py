"""Takes roots of sums of squares, as torch's functions compute them one after another, for the norms that they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from wsb_engine.curvature.tracing.dispatch import Running, running
from wsb_engine.formats.graph.kernels.norms import root

_KEEPING = frozenset(
    {
        *("__getitem__", "clone", "contiguous", "expand", "flatten", "mean", "permute", "reshape", "select", "slice"),
        *("squeeze", "sum", "transpose", "unflatten", "unsqueeze", "view", "view_as"),
    }
)
"""Functions that make sums of squares of sums of squares."""


class Roots(TorchFunctionMode):
    """Gives √(Σ x²) within its block the derivatives of a norm: slope 0, not 0 times ∞, where all x are 0."""

    def __init__(self) -> None:
        super().__init__()
        self._squares = WeakTensorKeyDictionary()
        """Sums of squares of what is no square itself."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = getattr(function, "__name__", "").partition(".")[0]
        exponent = {"sqrt": 0.5, "square": 2}.get(name)
        if name == "pow" and len(args) > 1:
            exponent = args[1]
        if isinstance(exponent, float) and exponent == 0.5 and self._is_square(args[0]):
            with Running(running() or name):
                return root(args[0], exponent)
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and self._makes_square(name, exponent, args):
            self._squares[result] = None
        return result

    def _is_square(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value in self._squares

    def _makes_square(self, name: str, exponent: Any, args: tuple[Any, ...]) -> bool:
        if isinstance(exponent, (int, float)):
            return exponent == 2 and not self._is_square(args[0])
        if name == "mul" and args[0] is args[1]:
            return not self._is_square(args[0])
        if name in ("div", "mul", "true_divide"):
            first, second = args[:2]
            pairs = [(first, second), (second, first)][: 2 if name == "mul" else 1]
            return any(self._is_square(square) and _is_number(scale) for square, scale in pairs)
        if name == "add":
            return all(self._is_square(each) for each in args[:2])
        return name in _KEEPING and self._is_square(args[0])


def _is_number(value: Any) -> bool:
    """True for a scale, which is positive if the root is one."""
    return isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.ndim == 0)
