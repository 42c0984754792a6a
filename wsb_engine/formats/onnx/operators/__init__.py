"""The operator table: ONNX operators as pure, twice differentiable torch functions, one module a family."""

from wsb_engine.formats.onnx.operators import activations, arithmetic, indexing, linear, reductions, shapes
from wsb_engine.formats.onnx.operators.activations import ACTIVATIONS
from wsb_engine.formats.onnx.operators.registry import ML, Call, Operator, facts, find, require, supported

__all__ = [
    "ACTIVATIONS",
    "ML",
    "Call",
    "Operator",
    "activations",
    "arithmetic",
    "facts",
    "find",
    "indexing",
    "linear",
    "reductions",
    "require",
    "shapes",
    "supported",
]
