"""The ONNX reader: a file's bytes → a classifier that torch can differentiate, nothing executed on the way."""

from wsb_engine.formats.onnx.classifier import OnnxClassifier

__all__ = ["OnnxClassifier"]
