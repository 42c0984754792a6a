"""Certified sharpness of trained classifiers: bounds on the largest Hessian eigenvalue.

The public names are loaded on first use, so that importing the package (for its report schema, say) does not
import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsb_engine.analysis import analyze
    from wsb_engine.classifier import Classifier
    from wsb_engine.curvature.penalty import wolkowicz_styan_penalty
    from wsb_engine.eigenvectors import Eigenpairs, eigenpairs
    from wsb_engine.errors import BatchError, EngineError, ModelError, OptionsError, ResourceError
    from wsb_engine.formats import load_model
    from wsb_engine.formats.batch import Batch, load_batch
    from wsb_engine.formats.module import from_module
    from wsb_engine.options import Options
    from wsb_engine.progress import Progress
    from wsb_engine.report import Report

__version__ = "0.1.0"

_HOME = {
    "Batch": "wsb_engine.formats.batch",
    "BatchError": "wsb_engine.errors",
    "Classifier": "wsb_engine.classifier",
    "Eigenpairs": "wsb_engine.eigenvectors",
    "EngineError": "wsb_engine.errors",
    "ModelError": "wsb_engine.errors",
    "Options": "wsb_engine.options",
    "OptionsError": "wsb_engine.errors",
    "Progress": "wsb_engine.progress",
    "Report": "wsb_engine.report",
    "ResourceError": "wsb_engine.errors",
    "analyze": "wsb_engine.analysis",
    "eigenpairs": "wsb_engine.eigenvectors",
    "from_module": "wsb_engine.formats.module",
    "load_batch": "wsb_engine.formats.batch",
    "load_model": "wsb_engine.formats",
    "wolkowicz_styan_penalty": "wsb_engine.curvature.penalty",
}

__all__ = [
    "Batch",
    "BatchError",
    "Classifier",
    "Eigenpairs",
    "EngineError",
    "ModelError",
    "Options",
    "OptionsError",
    "Progress",
    "Report",
    "ResourceError",
    "__version__",
    "analyze",
    "eigenpairs",
    "from_module",
    "load_batch",
    "load_model",
    "wolkowicz_styan_penalty",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
