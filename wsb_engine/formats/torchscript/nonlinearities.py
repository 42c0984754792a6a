"""Which operators a report names as a network's nonlinearities."""

from __future__ import annotations

from wsb_engine.formats.graph.plan import Step

_ACTIVATIONS = frozenset(
    {
        "celu", "elu", "gelu", "glu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "log_sigmoid", "mish",
        "prelu", "relu", "relu6", "rrelu", "scaled_dot_product_attention", "selu", "sigmoid", "silu", "softmax",
        "softplus", "softsign", "tanh",
    }
)  # fmt: skip


def nonlinearities(step: Step) -> tuple[str, ...]:
    """Names that a report gives to what a step does, where that is not linear."""
    name = step.call.node.name.removesuffix("_")
    if name == "_transformer_encoder_layer_fwd":
        return ("scaled_dot_product_attention", "gelu" if step.arguments[7] else "relu")
    return (name,) if name in _ACTIVATIONS else ()
