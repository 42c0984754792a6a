"""The operator table: ONNX operators as pure, twice differentiable torch functions, one module a family."""

from wsb_engine.formats.graph.operators import (  # noqa: F401 - importing them fills the table
    activations,
    arithmetic,
    attention,
    classical,
    convolution,
    indexing,
    linear,
    normalization,
    pooling,
    recurrent,
    reductions,
    resampling,
    shapes,
)
from wsb_engine.formats.graph.operators.registry import ML, Call, Operator, find, require, supported

__all__ = ["ML", "Call", "Operator", "find", "require", "supported"]
