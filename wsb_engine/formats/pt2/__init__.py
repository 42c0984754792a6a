"""The reader of PyTorch 2 archives: JSON and raw weights → a classifier, nothing executed or unpickled."""

from wsb_engine.formats.pt2.classifier import Pt2Classifier

__all__ = ["Pt2Classifier"]
