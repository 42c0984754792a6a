"""Which operators make the logits less than smooth in the parameters, and which a report names."""

from __future__ import annotations

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


def kinks(step: Step) -> tuple[str, ...]:
    """Names of the operators in a step whose slope jumps."""
    if _is_smooth(step):
        return ()
    name = step.call.operation.name.removesuffix("_")
    return ("relu",) if name == "_transformer_encoder_layer_fwd" else (name,)


def _is_smooth(step: Step) -> bool:
    """Whether the result of a step has a continuous slope in the tensors that it reads."""
    name = step.call.operation.name.removesuffix("_")
    entry = TABLE.get(name)
    if entry is None:  # a branch or a query that the walk without shapes has left open
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
