"""The TorchScript reader: an archive's bytes → a classifier that torch can differentiate, nothing executed."""

from wsb_engine.formats.torchscript.classifier import TorchScriptClassifier

__all__ = ["TorchScriptClassifier"]
