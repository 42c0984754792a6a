"""The arrays of a batch file: .npz, never with pickles, or .safetensors."""

from __future__ import annotations

import io
import zipfile
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from wsb_engine.errors import BatchError
from wsb_engine.sources.npy import read_header
from wsb_engine.sources.samples import MAX_BYTES

MAX_ARRAYS = 256


def read_npz(data: bytes) -> dict[str, NDArray[Any]]:
    """Read all arrays of an .npz archive.

    Raises:
        BatchError: ``batch_invalid``, ``batch_too_large``, ``object_array``.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            if len(members) > MAX_ARRAYS:
                raise BatchError(
                    f"the batch has {len(members)} arrays, the limit is {MAX_ARRAYS}",
                    code="batch_too_large",
                    advice="Keep x, y, weights or one array per model input.",
                )
            require_size(sum(member.file_size for member in members))
            arrays: dict[str, NDArray[Any]] = {}
            for member in members:
                name = member.filename.removesuffix(".npy")
                if name in arrays:
                    raise _damaged(f"array {name!r} appears twice")
                arrays[name] = _read_npy(archive, member, name)
            return arrays
    except (
        zipfile.BadZipFile,
        zipfile.LargeZipFile,
        zlib.error,
        EOFError,
        OSError,
        NotImplementedError,
        RuntimeError,
    ) as error:
        raise _damaged(str(error) or type(error).__name__) from error


def _read_npy(archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str) -> NDArray[Any]:
    with archive.open(member) as stream:
        shape, fortran, dtype = read_header(stream, name, member.file_size, "batch_invalid")
        values = np.frombuffer(stream.read(), dtype)
    return values.reshape(shape, order="F" if fortran else "C")


def read_safetensors(data: bytes) -> dict[str, Tensor]:
    """Read all tensors of a .safetensors file.

    Raises:
        BatchError: ``batch_invalid``.
    """
    import safetensors
    import safetensors.torch

    try:
        return dict(safetensors.torch.load(data))
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise _damaged(str(error)) from error


def require_size(size: int) -> None:
    """Raise BatchError ``batch_too_large`` if a batch may not hold that many bytes."""
    if size > MAX_BYTES:
        raise BatchError(
            f"the batch holds {size:,} bytes, the limit is {MAX_BYTES:,}",
            code="batch_too_large",
            advice="Send fewer samples.",
            size=size,
            limit=MAX_BYTES,
        )


def _damaged(reason: str) -> BatchError:
    return BatchError(
        f"the batch file can't be read: {reason}",
        code="batch_invalid",
        advice="The file is damaged or incomplete: write it again and compare its size and checksum.",
    )
