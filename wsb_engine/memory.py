"""Recognise errors that mean out of memory: torch, CUDA's libraries and ONNX Runtime each word them differently."""

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
    """Return True if an error, from whichever library, means that memory ran out."""
    if error is None or isinstance(error, EngineError):
        return False
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, Exception) and any(part in text for part in _TEXTS)
