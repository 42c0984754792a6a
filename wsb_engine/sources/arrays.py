"""Arrays that numpy saved: .npy files and members of .npz archives, without pickles and without reading other rows."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from wsb_engine.errors import BatchError, first_line
from wsb_engine.sources.labels import numbering, text_of
from wsb_engine.sources.npy import damaged, read_header
from wsb_engine.sources.samples import MAX_BYTES, ProgressSink, Samples, require_room
from wsb_engine.sources.subset import strata_of, stratified

_BLOCK_BYTES = 16 << 20
"""Bytes of an archive's member that are read at once."""
_SHOWN = 20


@dataclass(frozen=True)
class Stored:
    """An array in a file."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    rows: Callable[[NDArray[np.int64] | None], NDArray[Any]]
    """Reads these rows (ascending), or all."""

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize


def read_npy(
    x: Path, y: Path, *, classes: Sequence[str] | None = None, keep_labels: bool = False, **subset: Any
) -> Samples:
    """Read a pair of .npy files, memory-mapped.

    Args:
        x: Inputs (N, …).
        y: Labels (N,), or probabilities (N, C).
        classes: Names of all classes in logit order, if y holds text or other numbers.
        keep_labels: True to keep labels as text.
        subset: ``rows``, ``seed`` and ``progress``, as of ``read_csv``.

    Raises:
        BatchError: ``source_not_found``, ``npy_invalid``, ``object_array``, ``row_count_mismatch``,
            ``batch_too_large``, and those of ``numbering`` and ``stratified``.
    """
    return _samples({"x": _mapped(x)}, _mapped(y), classes, keep_labels, **subset)


def read_npz(
    path: Path,
    *,
    x: Sequence[str] = ("x",),
    y: str = "y",
    classes: Sequence[str] | None = None,
    keep_labels: bool = False,
    **subset: Any,
) -> Samples:
    """Read an .npz archive whose arrays have other names; one input is called x, several keep their names.

    Args:
        path: The archive.
        x: Names of the arrays with the inputs.
        y: Name of the array with the labels.
        classes: Names of all classes in logit order, if y holds text or other numbers.
        keep_labels: True to keep labels as text.
        subset: ``rows``, ``seed`` and ``progress``, as of ``read_csv``.

    Raises:
        BatchError: as ``read_npy``, and ``npz_invalid``, ``array_unknown``.
    """
    with _archive(path) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        for name in (*x, y):
            if name not in members:
                raise _unknown(name, archive, members)
        inputs = {name if len(x) > 1 else "x": _member(archive, members[name], name) for name in x}
        samples = _samples(inputs, _member(archive, members[y], y), classes, keep_labels, **subset)
    left = ", ".join(sorted(set(members) - {*x, y})[:_SHOWN])
    return samples if not left else Samples(samples.x, samples.y, samples.classes, (("left out", left),))


def _samples(
    inputs: dict[str, Stored],
    stored: Stored,
    classes: Sequence[str] | None,
    keep_labels: bool,
    *,
    rows: int | None = None,
    seed: int = 0,
    progress: ProgressSink,
) -> Samples:
    total = stored.shape[0] if stored.shape else 0
    for each in inputs.values():
        if each.shape[:1] != (total,):
            raise BatchError(
                f"{each.name} has shape {list(each.shape)}, the labels in {stored.name} {list(stored.shape)}",
                code="row_count_mismatch",
                advice="Name arrays with one row for each sample.",
            )
    require_room(total, stored.row_bytes)
    if stored.dtype.kind not in "biufUS":
        raise BatchError(
            f"the labels in {stored.name} have dtype {stored.dtype}",
            code="unsupported_array_dtype",
            advice="Save labels as integers, as text, or as rows of probabilities.",
        )
    y = stored.rows(None)
    y, names = (y, None) if keep_labels else class_numbers(y, classes)
    chosen = stratified(strata_of(y), rows, seed)
    require_room(len(chosen), sum(each.row_bytes for each in inputs.values()))
    x = {}
    for count, (name, each) in enumerate(inputs.items()):
        progress("rows", count / len(inputs))
        x[name] = each.rows(None if len(chosen) == total else chosen)
    return Samples(x, y[chosen], names)


def class_numbers(y: NDArray[Any], classes: Sequence[str] | None) -> tuple[NDArray[Any], tuple[str, ...] | None]:
    """Return labels with text replaced by class numbers, and the names of the classes if there are any.

    Raises:
        BatchError: those of ``numbering``.
    """
    texts = text_of(y)
    if texts is None and classes is not None and y.dtype.kind in "iub":
        texts = y.astype(np.str_)
    if texts is None:
        return y, None
    distinct, which = np.unique(texts, return_inverse=True)
    numbers, names = numbering(distinct.tolist(), classes)
    return np.array([numbers[each] for each in distinct.tolist()], dtype=np.int64)[which].reshape(y.shape), names


def _mapped(path: Path) -> Stored:
    if not path.is_file():
        raise BatchError(f"{path} is not a file", code="source_not_found", advice="Give the path of an .npy file.")
    try:
        with path.open("rb") as file:
            shape, fortran, dtype = read_header(file, path.name, path.stat().st_size)
            offset = file.tell()
        order: Any = "F" if fortran else "C"
        # An empty file can't be mapped.
        mapped = math.prod(shape) > 0
        values: Any = np.memmap(path, dtype, "r", offset, shape, order) if mapped else np.empty(shape, dtype)
    except OSError as error:
        raise damaged(path.name, error.strerror or str(error)) from error
    return Stored(path.name, shape, dtype, lambda rows: np.array(values if rows is None else values[rows]))


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> Stored:
    with _readable(name), archive.open(info) as stream:
        shape, fortran, dtype = read_header(stream, name, info.file_size)
        offset = stream.tell()

    def rows(chosen: NDArray[np.int64] | None) -> NDArray[Any]:
        with _readable(name), archive.open(info) as stream:
            stream.read(offset)
            if chosen is None or fortran:
                if info.file_size > MAX_BYTES:
                    raise damaged(name, f"it is in Fortran order, and holds more than {MAX_BYTES:,} bytes")
                content = stream.read()
                values = np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")
                return values if chosen is None else values[chosen]
            return _picked(stream, shape, dtype, chosen)

    return Stored(name, shape, dtype, rows)


def _picked(stream: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any], chosen: NDArray[np.int64]) -> NDArray[Any]:
    """Read a member block by block and keep the chosen rows."""
    size = max(math.prod(shape[1:]) * dtype.itemsize, 1)
    step = max(_BLOCK_BYTES // size, 1)
    picked = np.empty((len(chosen), *shape[1:]), dtype)
    for start in range(0, int(chosen[-1]) + 1, step):
        stop = min(start + step, shape[0])
        block = np.frombuffer(stream.read((stop - start) * math.prod(shape[1:]) * dtype.itemsize), dtype)
        first, last = np.searchsorted(chosen, (start, stop))
        picked[first:last] = block.reshape(stop - start, *shape[1:])[chosen[first:last] - start]
    return picked


@contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    if not path.is_file():
        raise BatchError(f"{path} is not a file", code="source_not_found", advice="Give the path of an .npz file.")
    with _readable(path.name):
        archive = zipfile.ZipFile(path)
    with archive:
        yield archive


@contextmanager
def _readable(name: str) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError) as error:
        raise damaged(name, first_line(error), "npz_invalid") from error


def _unknown(name: str, archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo]) -> BatchError:
    """Return the error for an array that isn't there; it lists the shapes of those that are."""
    found = []
    for other, info in list(members.items())[:_SHOWN]:
        if info.filename.endswith(".npy"):
            try:
                found.append(f"{other} {list(_member(archive, info, other).shape)}")
            except BatchError:
                found.append(other)
    return BatchError(
        f"the archive has no array {name!r}; it has {', '.join(found) or 'none'}",
        code="array_unknown",
        advice="Name the arrays: --x for the inputs, --y for the labels.",
        arrays=list(members)[:_SHOWN],
    )
