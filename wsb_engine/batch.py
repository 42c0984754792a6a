"""Labelled batches: .npz (never with pickles) and .safetensors files, or arrays from memory.

A file holds ``y`` and ``x``, or one array per model input by its name, and optionally ``weights``. Headers are
checked against the available bytes before anything is allocated.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsb_engine.errors import BatchError
from wsb_engine.formats.detect import batch_format
from wsb_engine.formats.foreign import folder_batch
from wsb_engine.sources.batch_file import MAX_MAPPED_BYTES, read_batch_file
from wsb_engine.sources.npy import object_array
from wsb_engine.sources.samples import MAX_BYTES

_BLOCK_BYTES = 4 << 20
"""Bytes of an array that are checked at once."""

ArrayLike = Any

_TENSOR_DTYPES = {
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
}


@dataclass(frozen=True)
class Batch:
    """Inputs and labels of N samples.

    Args:
        x: One array (N, …), or a mapping from input name to array.
        y: Integer labels (N,), or probabilities (N, C); for one logit also (N,) or (N, 1) in [0, 1]. Strings are
            allowed if the model declares its classes. Integer labels (N, T) or (N, H, W) of tokens or pixels. What y
            may be is checked against the loss of the analysis.
        weights: (N,) non-negative, not all 0; the loss is Σ w_s ℓ_s / Σ w_s. None weights all samples equally.

    Raises:
        BatchError: ``empty_batch``, ``row_count_mismatch``, ``no_features``, ``batch_not_finite``, ``object_array``,
            ``unsupported_array_dtype``, ``labels_shape``, ``weights_invalid``.

    Examples:
        >>> import numpy as np
        >>> import wsb
        >>> x = np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
        >>> len(wsb.Batch(x, [0, 1, 1]))
        3
        >>> soft = wsb.Batch({"image": x}, [[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]], weights=[1, 1, 2])
        >>> list(soft.x), soft.y.shape, soft.weights
        (['image'], (3, 2), array([1., 1., 2.]))
    """

    x: Mapping[str, Tensor]
    """Input tensors by name; the name is "x" for a single array. ``load_batch`` maps large ones."""
    y: NDArray[Any]
    weights: NDArray[np.float64] | None = None
    sha256: str | None = None
    """Hex digest of the file; None for arrays from memory."""
    load_seconds: float = 0.0
    """Seconds spent reading the file."""

    def __init__(
        self,
        x: ArrayLike,
        y: ArrayLike,
        weights: ArrayLike | None = None,
        *,
        sha256: str | None = None,
        load_seconds: float = 0.0,
    ) -> None:
        arrays = dict(x) if isinstance(x, Mapping) else {"x": x}
        if not arrays:
            raise BatchError("the batch has no input array", code="inputs_missing", advice="Add an array x.")
        tensors = {str(name): _tensor(str(name), value) for name, value in arrays.items()}
        labels = _labels(y)
        for name, tensor in tensors.items():
            if tensor.ndim == 0 or len(tensor) != len(labels):
                rows = len(tensor) if tensor.ndim else "no"
                raise BatchError(
                    f"array {name!r} has {rows} rows, y has {len(labels)}",
                    code="row_count_mismatch",
                    advice="Give every array one row for each sample.",
                    array=name,
                )
            if len(tensor) and not tensor.numel():
                raise BatchError(
                    f"array {name!r} has shape {list(tensor.shape)}: its rows are empty",
                    code="no_features",
                    advice="Give every row the features that the model takes.",
                    array=name,
                )
        object.__setattr__(self, "x", tensors)
        object.__setattr__(self, "y", labels)
        object.__setattr__(self, "weights", None if weights is None else _weights(weights, len(labels)))
        object.__setattr__(self, "sha256", sha256)
        object.__setattr__(self, "load_seconds", load_seconds)

    def __len__(self) -> int:
        return len(self.y)

    @classmethod
    def from_arrays(cls, x: ArrayLike, y: ArrayLike, rows: int | None = None, seed: int = 0) -> Batch:
        """Make a batch of a random subset of arrays that keeps the proportions of the classes.

        Args:
            x: As of ``Batch``.
            y: As of ``Batch``.
            rows: Rows of the subset; None for all.
            seed: Seed of the subset; the same seed gives the same rows on every platform.

        Raises:
            BatchError: as ``Batch``, and ``rows_invalid``, ``too_few_rows``, ``seed_invalid``.

        Examples:
            >>> import numpy as np
            >>> import wsb
            >>> y = np.array([0] * 6 + [1] * 3)
            >>> wsb.Batch.from_arrays(np.eye(9), y, rows=3).y.tolist()
            [0, 0, 1]
        """
        from wsb_engine.sources.subset import strata_of, stratified

        arrays, labels = dict(x) if isinstance(x, Mapping) else {"x": x}, _labels(y)
        if rows is None or any(tuple(np.shape(value))[:1] != (len(labels),) for value in arrays.values()):
            return cls(x, y)
        chosen = stratified(strata_of(labels), rows, seed)
        index = torch.from_numpy(chosen)
        picked = {
            name: value[index] if isinstance(value, Tensor) else np.asarray(value)[chosen]
            for name, value in arrays.items()
        }
        return cls(picked, labels[chosen])

    @classmethod
    def from_dataframe(
        cls,
        frame: Any,
        label: str,
        *,
        drop: Sequence[str] = (),
        classes: Sequence[str] | None = None,
        rows: int | None = None,
        seed: int = 0,
    ) -> Batch:
        """Make a batch of a dataframe of pandas or polars: x has its columns in order, as float32.

        Args:
            frame: The dataframe; every column but the label must hold numbers or truth values.
            label: Name of the column with the classes. Integers stay as they are; text is numbered in sorted order.
            drop: Names of columns to leave out.
            classes: Names of all classes in the order of the model's logits, if that is another order.
            rows: Rows of a random subset that keeps the proportions of the classes; None for all.
            seed: Seed of the subset.

        Raises:
            BatchError: as ``Batch``, and ``not_a_dataframe``, ``column_unknown``, ``column_unnamed``,
                ``column_repeated``, ``no_features``, ``text_column``, ``missing_values``, ``labels_not_classes``,
                ``labels_unknown``, ``classes_invalid``, ``too_many_classes``, ``rows_invalid``, ``too_few_rows``,
                ``seed_invalid``.
        """
        from wsb_engine.sources.frame import read_frame
        from wsb_engine.sources.samples import with_dtype

        samples = read_frame(frame, label=label, drop=drop, classes=classes, rows=rows, seed=seed)
        return cls(with_dtype(samples, "float32").x, samples.y)

    @classmethod
    def from_loader(cls, loader: Iterable[Any], n: int | None = None) -> Batch:
        """Make a batch of the first n rows of a PyTorch DataLoader.

        Args:
            loader: Yields pairs (x, y), or mappings with the model's inputs by name and labels as ``labels``,
                ``label`` or ``y``, as collators of Hugging Face give them.
            n: Number of rows; None for all.

        Raises:
            BatchError: as ``Batch``, and ``loader_item_unknown``, ``loader_shapes_differ``, ``batch_too_large``,
                ``rows_invalid``, ``too_few_rows``.

        Examples:
            >>> import torch
            >>> import wsb
            >>> data = torch.utils.data.TensorDataset(torch.eye(6), torch.arange(6) % 2)
            >>> batch = wsb.Batch.from_loader(torch.utils.data.DataLoader(data, batch_size=4), 5)
            >>> tuple(batch.x["x"].shape), batch.y.tolist()
            ((5, 6), [0, 1, 0, 1, 0])
        """
        from wsb_engine.sources.loader import read_loader

        return cls(*read_loader(loader, n))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the batch to a file that ``load_batch`` reads, in place of what is there, whole or not at all.

        Args:
            path: A path that ends in ``.npz`` or ``.safetensors``. numpy has no bfloat16: an ``.npz`` file holds it
                as float32, which is exact.

        Raises:
            BatchError: ``batch_suffix_unknown``, ``labels_text_unsupported``.
            OSError: if the file can't be written.

        Examples:
            >>> import wsb
            >>> wsb.Batch([[0.0, 1.0], [1.0, 0.0]], [0, 1]).save("two.npz")
            >>> len(wsb.load_batch("two.npz"))
            2
        """
        from wsb_engine.sources.write import write_arrays

        weights = {} if self.weights is None else {"weights": self.weights}
        write_arrays(Path(path), {**self.x, "y": self.y, **weights})


def load_batch(source: str | os.PathLike[str] | bytes, *, max_bytes: int = MAX_MAPPED_BYTES) -> Batch:
    """Read a batch file; its first bytes determine the format.

    Inputs of 256 MiB or more in a file are mapped, not read, if they are stored without compression, in C order and in
    the byte order of this machine: the batch may then be larger than memory. Such tensors are read-only: clone what you
    write to or compute with, and leave the file alone while you use the batch.

    Args:
        source: A path, or the file's bytes.
        max_bytes: Limit on the bytes of all arrays. Those that are read may have 8 GiB.

    Raises:
        BatchError: as ``Batch``, and ``batch_not_found``, ``batch_empty_file``, ``batch_unrecognized``,
            ``batch_invalid``, ``batch_too_large``, ``labels_missing``, ``inputs_missing``, ``pickle_refused``,
            ``arguments_swapped``.

    Examples:
        >>> import numpy as np
        >>> import wsb
        >>> np.savez("batch.npz", x=np.eye(4), y=np.array([0, 1, 2, 1]))
        >>> batch = wsb.load_batch("batch.npz")
        >>> {name: tuple(tensor.shape) for name, tensor in batch.x.items()}, batch.y.tolist()
        ({'x': (4, 4)}, [0, 1, 2, 1])
    """
    start = time.perf_counter()
    arrays, digest = _read(source, max_bytes)
    y = arrays.pop("y", None)
    weights = arrays.pop("weights", None)
    if y is None:
        raise _unlabelled(arrays)
    if not arrays:
        raise BatchError(
            "the batch has no input array",
            code="inputs_missing",
            advice="Add an array x, or one array per model input under its name.",
        )
    return Batch(arrays, y, weights, sha256=digest, load_seconds=time.perf_counter() - start)


_Y_NAME = re.compile(r"(y|labels?|targets?|class(es)?)([_-]\w*)?", re.IGNORECASE)
_X_NAME = re.compile(r"(x|images?|data|inputs?|features?|pixels?)([_-]\w*)?", re.IGNORECASE)


def _unlabelled(arrays: Mapping[str, ArrayLike]) -> BatchError:
    """Return the error for a batch without an array y; its advice renames what looks like it."""
    listed = [f"{name!r} {value.dtype} {list(value.shape)}".replace(" torch.", " ") for name, value in arrays.items()]
    advice = "Add y: integer labels [N], or probabilities [N, C]."
    labels = [name for name in arrays if _Y_NAME.fullmatch(name)]
    if len(labels) == 1:
        others = [name for name in arrays if name != labels[0]]
        renamed = {"y": labels[0], **({"x": others[0]} if len(others) == 1 and _X_NAME.fullmatch(others[0]) else {})}
        moves = "; ".join(f"a[{new!r}] = a.pop({old!r})" for new, old in renamed.items() if new != old)
        advice += f" If {labels[0]!r} has the labels: a = dict(numpy.load('batch.npz')); {moves}; "
        advice += "numpy.savez('batch.npz', **a)."
    return BatchError(
        f"the batch has no array y; it has {', '.join(listed[:20]) or 'none'}",
        code="labels_missing",
        advice=advice,
        arrays=sorted(arrays)[:20],
    )


def _read(source: str | os.PathLike[str] | bytes, max_bytes: int) -> tuple[dict[str, ArrayLike], str]:
    """Return the arrays of a batch file, and its digest."""
    file = source if isinstance(source, bytes) else Path(source)
    if isinstance(file, Path) and file.is_dir():
        raise folder_batch(file)
    try:
        return read_batch_file(file, batch_format(file), max_bytes)
    except OSError as error:
        raise BatchError(
            f"the batch can't be read: {error.strerror}",
            code="batch_not_found",
            advice="Give the path of a readable .npz or .safetensors file.",
        ) from error


def _tensor(name: str, value: ArrayLike) -> Tensor:
    """Return a finite, real floating or integer tensor."""
    if isinstance(value, Tensor) and value.dtype in (torch.uint16, torch.uint32, torch.uint64):
        value = value.cpu().numpy()
    if isinstance(value, Tensor):
        tensor = value.detach().cpu()
        if tensor.dtype not in _TENSOR_DTYPES:
            raise _unsupported_dtype(name, str(tensor.dtype))
    else:
        array = np.asarray(value)
        if array.dtype.hasobject:
            raise object_array(name)
        if array.dtype.kind not in "fiub" or array.dtype.itemsize > 8:
            raise _unsupported_dtype(name, str(array.dtype))
        if array.dtype.kind == "u" and array.dtype.itemsize > 1:
            if array.size and int(array.max()) > np.iinfo(np.int64).max:
                raise _unsupported_dtype(name, f"{array.dtype} above the range of int64")
            _require_room(name, array.size * np.dtype(np.int64).itemsize)
            array = array.astype(np.int64)
        array = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="), copy=False))
        tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
    if tensor.is_floating_point():
        _require_finite(name, _is_finite(tensor))
    return tensor


def _is_finite(tensor: Tensor) -> bool:
    """Return whether all numbers are finite, without a temporary tensor of this size."""
    rows = max(_BLOCK_BYTES * len(tensor) // max(tensor.nbytes, 1), 1) if tensor.ndim else 1
    blocks = tensor.split(rows) if tensor.ndim else (tensor,)
    return all(bool(torch.isfinite(block).all()) for block in blocks)


def _require_room(name: str, size: int) -> None:
    """Raise BatchError ``batch_too_large`` before an array is converted to one of more than the limit."""
    if size > MAX_BYTES:
        raise BatchError(
            f"array {name!r} would hold {size:,} bytes as int64, the limit is {MAX_BYTES:,}",
            code="batch_too_large",
            advice="Save it as int32, int64 or uint8, or send fewer samples.",
            limit=MAX_BYTES,
        )


def _unsupported_dtype(name: str, dtype: str) -> BatchError:
    return BatchError(
        f"array {name!r} has dtype {dtype}",
        code="unsupported_array_dtype",
        advice="Use a real floating, integer or boolean dtype of at most 64 bits.",
        array=name,
    )


def _require_finite(name: str, finite: bool) -> None:
    if not finite:
        raise BatchError(
            f"array {name!r} contains NaN or infinity",
            code="batch_not_finite",
            advice="Remove or replace the rows that are not finite.",
            array=name,
        )


def _labels(y: ArrayLike) -> NDArray[Any]:
    """Return int64 or finite float64 (N, …), or str (N,); whole numbers (N,) are integers, whatever their dtype."""
    array: NDArray[Any] = (
        (y.detach().cpu().double() if y.is_floating_point() else y.detach().cpu()).numpy()
        if isinstance(y, Tensor)
        else np.asarray(y)
    )
    if array.dtype.hasobject:
        raise object_array("y")
    if array.dtype.kind not in "fiubU":
        raise _unsupported_dtype("y", str(array.dtype))
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim == 0 or 0 in array.shape[1:] or (array.ndim > 1 and array.dtype.kind == "U"):
        raise BatchError(
            f"y has shape {array.shape}",
            code="labels_shape",
            advice="Give integer labels [N], probabilities [N, C], or integer labels [N, T] of tokens or pixels.",
        )
    if len(array) == 0:
        raise BatchError("the batch has no samples", code="empty_batch", advice="Send at least one row.")
    if array.dtype.kind == "f":
        _require_finite("y", bool(np.isfinite(array).all()))
        whole = array.ndim == 1 and bool(((array == np.floor(array)) & (np.abs(array) < 2.0**63)).all())
        return array.astype(np.int64 if whole else np.float64)
    if array.dtype.kind == "u" and array.max() > np.iinfo(np.int64).max:
        return array.astype(np.float64)
    return array if array.dtype.kind == "U" else array.astype(np.int64)


def _weights(weights: ArrayLike, samples: int) -> NDArray[np.float64]:
    array = _tensor("weights", weights).double().numpy()
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.shape != (samples,) or (array < 0).any() or not 0 < array.sum() < np.inf:
        raise BatchError(
            f"weights of shape {array.shape} do not weigh {samples} samples",
            code="weights_invalid",
            advice="Give one non-negative weight for each row, not all of them 0.",
        )
    return array
