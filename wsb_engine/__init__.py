"""How sharp a trained classifier is, with proof: bounds on the largest eigenvalue of its loss's Hessian.

Load a classifier and a batch, analyse them, and read the report:

    >>> import wsb
    >>> classifier = wsb.load_model("model.onnx")  # or wsb.from_module(torch_module)
    >>> batch = wsb.load_batch("batch.npz")  # or wsb.Batch(x, y)
    >>> report = wsb.analyze(classifier, batch)
    >>> print(f"{report.bounds.wolkowicz_styan.lambda_max.upper:.4f}")
    1.9882
    >>> print(f"{report.enclosure.lambda_max.lower:.4f} to {report.enclosure.lambda_max.upper:.4f}")
    0.8378 to 0.8378

The names:

- ``load_model`` and ``from_module`` return a ``Classifier``, from a model file or a live torch module.
- ``load_batch`` and ``Batch`` hold labelled samples, from a file or from arrays; ``Batch.from_loader``,
  ``Batch.from_dataframe`` and ``Batch.from_arrays`` take the first rows of a loader, or a random subset.
- ``analyze`` returns a ``Report``; ``Options`` says what to compute, ``Progress`` how far it is.
- ``estimate`` returns an ``Estimate`` of what an analysis will cost, before it runs.
- ``eigenpairs`` returns ``Eigenpairs``: the largest eigenvalues with their eigenvectors.
- ``verify`` returns a ``Verification``: which claims of a report hold when they are derived again.
- ``compare_parameters`` returns a ``ParameterComparison`` of a file and the module that it was exported from.
- ``wolkowicz_styan_penalty`` is the bound as a differentiable penalty for training.
- ``callbacks`` measure λ_max during training: plain loops, PyTorch Lightning, transformers, Keras.
- ``EngineError`` is the base class of ``ModelError``, ``BatchError``, ``OptionsError`` and ``ResourceError``; each
  error has a code and advice.

A name is loaded when it is first used, so importing the package does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from wsb_engine.version import __version__

if TYPE_CHECKING:
    from wsb_engine import callbacks
    from wsb_engine.analysis.analyze import analyze
    from wsb_engine.analysis.eigenpairs import Eigenpairs, eigenpairs
    from wsb_engine.analysis.estimate import estimate
    from wsb_engine.batch import Batch, load_batch
    from wsb_engine.costs import Estimate
    from wsb_engine.errors import BatchError, EngineError, ModelError, OptionsError, ResourceError
    from wsb_engine.formats.compare import ParameterComparison, compare_parameters
    from wsb_engine.formats.load import load_model
    from wsb_engine.formats.module import from_module
    from wsb_engine.model import Classifier
    from wsb_engine.options import Options
    from wsb_engine.penalty import wolkowicz_styan_penalty
    from wsb_engine.progress import Progress
    from wsb_engine.report import Report
    from wsb_engine.verification.findings import Verification
    from wsb_engine.verification.verify import verify

_MODULES = {
    "Batch": "wsb_engine.batch",
    "BatchError": "wsb_engine.errors",
    "Classifier": "wsb_engine.model",
    "Eigenpairs": "wsb_engine.analysis.eigenpairs",
    "EngineError": "wsb_engine.errors",
    "Estimate": "wsb_engine.costs",
    "ModelError": "wsb_engine.errors",
    "Options": "wsb_engine.options",
    "OptionsError": "wsb_engine.errors",
    "ParameterComparison": "wsb_engine.formats.compare",
    "Progress": "wsb_engine.progress",
    "Report": "wsb_engine.report",
    "ResourceError": "wsb_engine.errors",
    "Verification": "wsb_engine.verification.findings",
    "analyze": "wsb_engine.analysis.analyze",
    "compare_parameters": "wsb_engine.formats.compare",
    "eigenpairs": "wsb_engine.analysis.eigenpairs",
    "estimate": "wsb_engine.analysis.estimate",
    "from_module": "wsb_engine.formats.module",
    "load_batch": "wsb_engine.batch",
    "load_model": "wsb_engine.formats.load",
    "verify": "wsb_engine.verification.verify",
    "wolkowicz_styan_penalty": "wsb_engine.penalty",
}

__all__ = [
    "Batch",
    "BatchError",
    "Classifier",
    "Eigenpairs",
    "EngineError",
    "Estimate",
    "ModelError",
    "Options",
    "OptionsError",
    "ParameterComparison",
    "Progress",
    "Report",
    "ResourceError",
    "Verification",
    "__version__",
    "analyze",
    "callbacks",
    "compare_parameters",
    "eigenpairs",
    "estimate",
    "from_module",
    "load_batch",
    "load_model",
    "verify",
    "wolkowicz_styan_penalty",
]

if not TYPE_CHECKING:  # type checkers would allow any name

    def __getattr__(name: str) -> Any:
        if name == "callbacks":
            return importlib.import_module(f"{__name__}.callbacks")
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
