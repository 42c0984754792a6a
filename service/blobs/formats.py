"""Formats of uploaded files: the engine tells them from outside, and its refusals become problems."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.blobs.repository import TruncatedFileError, UnknownFormatError
from wsb_engine.errors import EngineError
from wsb_engine.formats import detect


def model_format(path: Path) -> detect.ModelFormat:
    """Tell the format of a model file.

    Raises:
        UnknownFormatError: if it is not accepted.
        TruncatedFileError: if it ends too early.
    """
    with _refusals():
        return detect.model_format(path)


def batch_format(path: Path) -> detect.BatchFormat:
    """Tell the format of a batch file.

    Raises:
        UnknownFormatError: if it is not accepted.
        TruncatedFileError: if it ends too early.
    """
    with _refusals():
        return detect.batch_format(path)


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except EngineError as error:
        kind = TruncatedFileError if error.details.get("truncated") else UnknownFormatError
        raise kind(f"{error.message[:1].upper()}{error.message[1:]}.", advice=error.advice) from error
