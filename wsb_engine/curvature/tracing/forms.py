"""What is known of a value's sign and zeros from the operators that compute it: enough to tell √(x²) from √(x² + ε).

A value is c·∏ |g_i|^d_i with smooth g_i, each of which may change its sign: it has a kink or a pole where some d_i is
neither an even number nor more than 2. A sum of several such values vanishes only where all of its terms do, and counts
as smooth, as the norm of a vector does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Form:
    """The sign and the zeros of every element of a tensor."""

    nonnegative: bool = False
    positive: bool = False
    """True if it is nonnegative and nowhere 0."""
    degrees: frozenset[float] = frozenset()
    """The d_i; empty if it is nowhere 0, or only where several smooth functions are 0 together."""

    @property
    def is_norm(self) -> bool:
        """True for a sum of several squares and its powers."""
        return self.nonnegative and not self.positive and not self.degrees

    @property
    def has_kink(self) -> bool:
        return any(degree <= 2 and degree % 2 != 0 for degree in self.degrees)

    def power(self, exponent: float) -> Form:
        if self.nonnegative:
            return Form(True, self.positive, frozenset(degree * exponent for degree in self.degrees))
        return Form(True, degrees=frozenset({exponent})) if exponent and exponent % 2 == 0 else ANY

    def times(self, other: Form) -> Form:
        if not (self.nonnegative and other.nonnegative):
            return ANY
        return Form(True, self.positive and other.positive, self.degrees | other.degrees)

    def plus(self, other: Form) -> Form:
        if not (self.nonnegative and other.nonnegative):
            return ANY
        return Form(True, self.positive or other.positive)

    def summed(self, terms: int) -> Form:
        """The form of a sum over that many elements."""
        return self if terms <= 1 or not self.nonnegative else Form(True, self.positive)


ANY = Form()
POSITIVE = Form(True, True)


@dataclass(frozen=True)
class Operands:
    """What an operator is applied to.

    Args:
        name: Name of the operator, without underscores at its ends.
        args: Its positional arguments.
        known: Returns the form of a tensor that depends on parameters, None for other tensors.
    """

    name: str
    args: tuple[Any, ...]
    known: Callable[[Tensor], Form | None]

    def at(self, position: int, default: Any = None) -> Any:
        return self.args[position] if len(self.args) > position else default

    def varies(self, value: Any) -> bool:
        """True for a tensor that depends on parameters."""
        return isinstance(value, Tensor) and self.known(value) is not None

    def form(self, value: Any) -> Form:
        """The form of a tensor or a number."""
        known = self.known(value) if isinstance(value, Tensor) else None
        if known is not None:
            return known
        least, _ = extremes(value)
        return Form(least >= 0, least > 0)

    def exponents(self) -> set[float] | None:
        """Exponents of a power; None if they depend on parameters, or are many."""
        exponent = self.args[1]
        if not isinstance(exponent, Tensor):
            return {float(exponent)}
        if self.varies(exponent) or not 0 < exponent.numel() <= _FEW:
            return None
        return set(exponent.double().unique().tolist())


_FEW = 64
"""Exponents that are looked at one by one."""


def extremes(value: Any) -> tuple[float, float]:
    """Return the least and the largest element; −∞ and ∞ for what has none."""
    if isinstance(value, Tensor) and _has_entries(value) and not value.is_complex():
        least, largest = torch.aminmax(value.double())
        return float(least), float(largest)
    if isinstance(value, (int, float)):
        return float(value), float(value)
    return -math.inf, math.inf


def _has_entries(tensor: Tensor) -> bool:
    return tensor.numel() > 0 and tensor.layout == torch.strided and not tensor.is_meta


_POSITIVE = frozenset({"cosh", "exp", "exp2", "sigmoid", "softplus"})
_INCREASING = frozenset({"asinh", "atan", "erf", "expm1", "log1p", "sinh", "tanh"})
"""Functions with a simple zero at 0, and no other."""
_COPIES = frozenset(
    {
        *("alias", "clone", "constant_pad_nd", "detach", "expand", "flip", "gather", "index", "index_select"),
        *("nan_to_num", "permute", "repeat", "reshape_alias", "roll", "select", "slice", "squeeze", "t", "to"),
        *("to_copy", "transpose", "unsafe_view", "unsqueeze", "view"),
    }
)
"""Operators whose elements are those of their first argument."""
_UNCHANGED = frozenset({"abs", "amax", "amin", "clamp", "clamp_min", "prod", "relu"})
"""Operators that leave a nonnegative argument so, with the zeros that it had."""
_ROOTS = {"reciprocal": -1.0, "rsqrt": -0.5, "sqrt": 0.5}


def result_form(given: Operands, result: Tensor) -> Form:
    """Return the form of an operator's first result."""
    name, first, second = given.name, given.at(0), given.at(1)
    if name in _POSITIVE:
        return POSITIVE
    if name in ("softmax", "safe_softmax"):
        return Form(True)
    if name in _COPIES or name in _UNCHANGED or name in _INCREASING:
        return given.form(first)
    if name in ("cat", "stack"):
        return one_of(given.form(part) for part in first)
    if name == "where":
        return one_of((given.form(second), given.form(given.at(2))))
    if name in ("sum", "mean"):
        return given.form(first).summed(terms(first, result))
    if name in ("var", "std", "var_mean", "std_mean"):
        degree = 2.0 if name.startswith("var") else 1.0
        return Form(True, degrees=frozenset({degree} if terms(first, result) <= 2 else ()))
    if name in ("linalg_vector_norm", "norm"):
        return Form(True, degrees=frozenset({1.0} if terms(first, result) <= 1 else ()))
    if name in ("avg_pool2d", "avg_pool3d"):
        return given.form(first).summed(math.prod(second))
    if name == "convolution" and given.at(2) is None:
        return given.form(first).times(given.form(second)).summed(math.prod(second.shape[1:]))
    return _of_arithmetic(given)


def _of_arithmetic(given: Operands) -> Form:
    first, second = given.form(given.at(0)), given.at(1)
    if given.name in _ROOTS:
        return first.power(_ROOTS[given.name])
    if given.name == "pow":
        return power(given)
    if given.name == "mul":
        return first.power(2) if is_same(given.at(0), second) else first.times(given.form(second))
    if given.name == "div":
        return first.times(given.form(second).power(-1.0))
    if given.name == "add":
        nothing = not given.varies(second) and extremes(second) == (0, 0)
        return first if nothing or is_same(given.at(0), second) else first.plus(given.form(second))
    return ANY


def power(given: Operands) -> Form:
    """Return the form of a power whose exponents do not depend on parameters."""
    base, exponents = given.form(given.at(0)), given.exponents()
    if not isinstance(given.at(0), Tensor):
        return POSITIVE if base.positive else ANY
    return ANY if exponents is None else one_of(base.power(exponent) for exponent in exponents)


def terms(operand: Tensor, result: Tensor) -> int:
    """Return the number of elements of an operand that a reduction combines in each result."""
    return operand.numel() // max(result.numel(), 1)


def is_same(first: Any, second: Any) -> bool:
    """True if both are the same elements of the same memory."""
    if not isinstance(first, Tensor) or not isinstance(second, Tensor):
        return False
    return first is second or _place(first) == _place(second)


def _place(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def one_of(forms: Iterable[Form]) -> Form:
    """Return the form of elements each of which has one of these forms."""
    found = list(forms)
    return Form(
        all(each.nonnegative for each in found),
        all(each.positive for each in found),
        frozenset[float]().union(*(each.degrees for each in found)),
    )
