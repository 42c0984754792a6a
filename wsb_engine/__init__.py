"""Certified sharpness of trained classifiers: bounds on the largest Hessian eigenvalue.

The public names are loaded on first use, so that importing the package (for its report schema, say) does not
import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from wsb_engine.version import __version__

if TYPE_CHECKING:
    from wsb_engine.analysis.analyze import analyze
    from wsb_engine.analysis.eigenpairs import Eigenpairs, eigenpairs
    from wsb_engine.batch import Batch, load_batch
    from wsb_engine.errors import BatchError, EngineError, ModelError, OptionsError, ResourceError
    from wsb_engine.formats.load import load_model
    from wsb_engine.formats.module import from_module
    from wsb_engine.model import Classifier
    from wsb_engine.options import Options
    from wsb_engine.penalty import wolkowicz_styan_penalty
    from wsb_engine.progress import Progress
    from wsb_engine.report import Report

_HOME = {
    "Batch": "wsb_engine.batch",
    "BatchError": "wsb_engine.errors",
    "Classifier": "wsb_engine.model",
    "Eigenpairs": "wsb_engine.analysis.eigenpairs",
    "EngineError": "wsb_engine.errors",
    "ModelError": "wsb_engine.errors",
    "Options": "wsb_engine.options",
    "OptionsError": "wsb_engine.errors",
    "Progress": "wsb_engine.progress",
    "Report": "wsb_engine.report",
    "ResourceError": "wsb_engine.errors",
    "analyze": "wsb_engine.analysis.analyze",
    "eigenpairs": "wsb_engine.analysis.eigenpairs",
    "from_module": "wsb_engine.formats.module",
    "load_batch": "wsb_engine.batch",
    "load_model": "wsb_engine.formats.load",
    "wolkowicz_styan_penalty": "wsb_engine.penalty",
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


def __dir__() -> list[str]:
    return __all__
