"""Formats of uploaded files, as the engine detects them from outside; its refusals become problems."""

from __future__ import annotations

from pathlib import Path

from service.blobs.errors import TruncatedFileError, UnknownFormatError
from service.storage.store import Kind
from wsb_engine.errors import EngineError
from wsb_engine.formats import detect


def read_format(kind: Kind, path: Path) -> detect.ModelFormat | detect.BatchFormat:
    """Detect the format of a file, without loading it.

    Raises:
        UnknownFormatError: if files of this kind can't have its format.
        TruncatedFileError: if it ends too early.
    """
    try:
        if kind == "optimizer_states":
            return detect.state_format(path)
        return detect.model_format(path) if kind == "models" else detect.batch_format(path)
    except EngineError as error:
        problem = TruncatedFileError if error.details.get("truncated") else UnknownFormatError
        raise problem(f"{error.message[:1].upper()}{error.message[1:]}.", advice=error.advice) from error
