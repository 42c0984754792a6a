"""Which operators make the logits less than smooth in the parameters, and which a report names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from wsb_engine.formats.torchscript.operators import SURE, TABLE
from wsb_engine.formats.torchscript.values import Step, filled

_ACTIVATIONS = frozenset(
    {
        "celu", "elu", "gelu", "glu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "log_sigmoid", "mish",
        "prelu", "relu", "relu6", "rrelu", "scaled_dot_product_attention", "selu", "sigmoid", "silu", "softmax",
        "softplus", "softsign", "tanh",
    }
)  # fmt: skip
"""Operators that a report names as a network's nonlinearities."""
_SUMS = frozenset(
    {"contiguous", "div", "divide", "flatten", "mean", "reshape", "squeeze", "sum", "true_divide", "unsqueeze", "view"}
)
"""Operators that leave a root of squares a norm."""
_GUARDS = frozenset({"eq", "ne", "not_equal"})
"""Tests that hold, or fail, for one number alone."""
_JUMPS = frozenset(
    {
        "argmax", "argmin", "eq", "ge", "greater", "greater_equal", "gt", "le", "less", "less_equal", "logical_and",
        "logical_not", "logical_or", "logical_xor", "lt", "ne", "not_equal", "one_hot",
    }
)  # fmt: skip
"""Smooth where they are, and jumping between."""


def nonlinearities(step: Step) -> tuple[str, ...]:
    """Names that a report gives to what a step does, where that is not linear."""
    name = step.call.operation.name.removesuffix("_")
    if name == "_transformer_encoder_layer_fwd":
        return ("scaled_dot_product_attention", "gelu" if step.arguments[7] else "relu")
    return (name,) if name in _ACTIVATIONS else ()


def kinks(steps: Sequence[Step]) -> Iterator[str]:
    """Names of the operators in these steps whose slope jumps in a parameter, in order."""
    squares: set[str] = set()
    for step in steps:
        if not step.trained:
            continue
        name = step.call.operation.name.removesuffix("_")
        if not _is_smooth(step) or (_is_root(name, step) and squares.intersection(step.reads)):
            yield "relu" if name == "_transformer_encoder_layer_fwd" else name
        if _keeps_squares(name, step, squares):
            squares.update(step.outputs)


def _is_root(name: str, step: Step) -> bool:
    if name == "pow":
        exponent = step.arguments[1]
        return isinstance(exponent, float) and exponent != int(exponent)
    return name in ("sqrt", "rsqrt")


def _keeps_squares(name: str, step: Step, squares: set[str]) -> bool:
    """True if the result is a sum of squares, which may be 0 where its root has a kink."""
    if name in ("mul", "multiply"):
        first, second = step.arguments[:2]
        return first == second or squares.issuperset(step.reads)
    if name == "pow":
        exponent = step.arguments[1]
        return isinstance(exponent, (int, float)) and exponent > 0 and exponent % 2 == 0
    if name in ("abs", "absolute", "square"):
        return True
    return name in _SUMS and bool(squares.intersection(step.reads))


def _is_smooth(step: Step) -> bool:
    """Whether the result of a step has a continuous slope in the tensors that it reads."""
    name = step.call.operation.name.removesuffix("_")
    entry = TABLE.get(name)
    if entry is None:  # a branch or a query that the walk without shapes has left open
        return True
    if name in _GUARDS and isinstance(step.arguments[1], (int, float)):
        return True
    if name == "where":  # a fixed condition selects, a computed one switches and is found by itself
        return True
    if name == "elu":
        alpha, _, input_scale = filled(step.arguments[1:], 1, 1, 1)
        return bool(alpha == 1 and input_scale == 1)
    if name == "softplus":
        _, threshold = filled(step.arguments[1:], 1, 20)
        return bool(threshold >= SURE)
    if name == "_transformer_encoder_layer_fwd":
        return bool(step.arguments[7])
    return entry.smooth and name not in _JUMPS
