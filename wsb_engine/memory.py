"""Whether an error means that there was no memory: torch, CUDA's libraries and ONNX Runtime each have texts for it."""

from __future__ import annotations

import torch

from wsb_engine.errors import EngineError

_TEXTS = (
    "allocate memory",  # torch on a CPU, in a plain RuntimeError, and ONNX Runtime
    "not enough memory",
    "out of memory",  # CUDA's runtime
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
)


def ran_out(error: BaseException | None) -> bool:
    """True if an error of whatever library says that there was no memory."""
    if error is None or isinstance(error, EngineError):
        return False
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, Exception) and any(part in text for part in _TEXTS)
