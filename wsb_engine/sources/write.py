"""Writes arrays to a batch file."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsb_engine.errors import BatchError

SUFFIXES = (".npz", ".safetensors")


def require_suffix(path: Path) -> None:
    """Raise BatchError ``batch_suffix_unknown`` if the suffix names no format."""
    if path.suffix not in SUFFIXES:
        raise BatchError(
            f"the suffix of {path.name} names no format of batches",
            code="batch_suffix_unknown",
            advice=f"Let the name end in {' or '.join(SUFFIXES)}.",
        )


def write_arrays(path: Path, arrays: Mapping[str, Tensor | NDArray[Any]]) -> None:
    """Write arrays as .npz or .safetensors, by the path's suffix; the same arrays give the same bytes.

    Raises:
        BatchError: ``batch_suffix_unknown``, ``labels_text_unsupported``.
        OSError: if the file can't be written; what was there before stays.
    """
    require_suffix(path)
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        with _replacing(path) as temporary:
            seen = set[int]()
            save_file({name: _tensor(name, array, seen) for name, array in arrays.items()}, temporary)
        return
    with _replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, _array(array), allow_pickle=False)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Yield a path beside the given one, and move it there if all went well."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.touch(exist_ok=False)
    mode = temporary.stat().st_mode
    try:
        yield temporary
        temporary.chmod(mode)  # safetensors makes files that only their owner can read
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _array(array: Tensor | NDArray[Any]) -> NDArray[Any]:
    if isinstance(array, Tensor):
        return np.asarray((array.float() if array.dtype == torch.bfloat16 else array).numpy())
    return array


def _tensor(name: str, array: Tensor | NDArray[Any], seen: set[int]) -> Tensor:
    """Return a contiguous tensor that shares no memory with those seen, as the format demands."""
    if isinstance(array, Tensor):
        storage = array.untyped_storage()
        alone = storage.data_ptr() not in seen and storage.nbytes() == array.nbytes and array.is_contiguous()
        seen.add(storage.data_ptr())
        return array if alone else array.clone(memory_format=torch.contiguous_format)
    if array.dtype.kind == "U":
        raise BatchError(
            f"{name} holds text, which .safetensors can't",
            code="labels_text_unsupported",
            advice="Write an .npz file, or number the classes.",
        )
    return torch.from_numpy(np.ascontiguousarray(array))
