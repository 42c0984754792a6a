"""The operator table: ONNX operators as pure, twice differentiable torch functions, one module a family."""

from wsb_engine.formats.graph.operators import (
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

FAMILIES = (
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
"""Importing them fills the table."""

__all__ = ["FAMILIES", "ML", "Call", "Operator", "find", "require", "supported"]
