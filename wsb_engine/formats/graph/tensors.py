"""TensorProto → torch.Tensor, with the declared shape checked against the bytes that are there."""

from __future__ import annotations

import math
import mmap
import sys
from collections.abc import Callable

import numpy as np
import onnx
import torch
from torch import Tensor

from wsb_engine.errors import ModelError
from wsb_engine.formats.graph import problems
from wsb_engine.formats.graph.limits import LIMITS

_TP = onnx.TensorProto
DTYPES: dict[int, torch.dtype] = {
    _TP.FLOAT: torch.float32,
    _TP.UINT8: torch.uint8,
    _TP.INT8: torch.int8,
    _TP.UINT16: torch.uint16,
    _TP.INT16: torch.int16,
    _TP.INT32: torch.int32,
    _TP.INT64: torch.int64,
    _TP.BOOL: torch.bool,
    _TP.FLOAT16: torch.float16,
    _TP.DOUBLE: torch.float64,
    _TP.UINT32: torch.uint32,
    _TP.UINT64: torch.uint64,
    _TP.BFLOAT16: torch.bfloat16,
}
"""ONNX element type → torch dtype, for the types that the reader computes with."""

# Where the elements are when they are not in raw_data, and the numpy type in which they are kept there.
_TYPED_FIELDS: dict[int, tuple[str, type[np.generic]]] = {
    _TP.FLOAT: ("float_data", np.float32),
    _TP.DOUBLE: ("double_data", np.float64),
    _TP.INT64: ("int64_data", np.int64),
    _TP.UINT64: ("uint64_data", np.uint64),
    _TP.UINT32: ("uint64_data", np.uint32),
    _TP.INT32: ("int32_data", np.int32),
    _TP.INT16: ("int32_data", np.int16),
    _TP.UINT16: ("int32_data", np.uint16),
    _TP.INT8: ("int32_data", np.int8),
    _TP.UINT8: ("int32_data", np.uint8),
    _TP.BOOL: ("int32_data", np.bool_),
}
External = Callable[[onnx.TensorProto], tuple[mmap.mmap | bytes, int, int]]
"""A tensor whose elements are in another file → that file, mapped, and where in it they begin and end."""
_HALVES: dict[int, torch.dtype] = {_TP.FLOAT16: torch.float16, _TP.BFLOAT16: torch.bfloat16}


def dtype_of(element_type: int, where: str) -> torch.dtype:
    """Return the torch dtype of an ONNX element type.

    Raises:
        ModelError: ``unsupported_dtype`` for strings, complex numbers, and types below 8 bits.
    """
    if element_type not in DTYPES:
        known = element_type in _TP.DataType.values()
        name = _TP.DataType.Name(element_type) if known else str(element_type)
        raise ModelError(
            f"{where}: element type {name} is not supported",
            code="unsupported_dtype",
            advice="Export with float16, float32, float64, integer or boolean tensors.",
            element_type=name,
        )
    return DTYPES[element_type]


def element_count(dims: tuple[int, ...], where: str, limit: int = LIMITS.tensor_elements) -> int:
    """Number of elements of a shape.

    Raises:
        ModelError: ``model_invalid`` for a negative size or an absurd rank, ``tensor_too_large`` past ``limit``.
    """
    problems.limit(f"dimensions in {where}", len(dims), LIMITS.rank)
    if any(size < 0 for size in dims):
        raise problems.invalid(f"{where} has a negative size in its shape {list(dims)}")
    count = math.prod(dims)
    if count > limit:
        raise problems.too_large(where, count, limit)
    return count


def to_torch(proto: onnx.TensorProto, where: str, external: External) -> Tensor:
    """Return the tensor's elements, on the CPU, in the stored dtype.

    Args:
        proto: The tensor.
        where: How messages name it.
        external: Finds the elements of a tensor that keeps them in another file. The result shares their memory.

    Raises:
        ModelError: ``unsupported_dtype``, ``tensor_too_large``, or ``model_invalid`` if shape and data disagree.
    """
    dtype = dtype_of(proto.data_type, where)
    dims = tuple(proto.dims)
    count = element_count(dims, where)
    if proto.data_location == _TP.EXTERNAL:
        file, start, stop = external(proto)
        return _viewed(file, start, stop, dims, dtype, where)
    if proto.HasField("raw_data"):
        raw = bytearray(proto.raw_data)
        return _viewed(raw, 0, len(raw), dims, dtype, where)
    if proto.data_type in _HALVES:
        bits = np.asarray(proto.int32_data, dtype=np.int64)
        _check_count(where, dims, bits.size, count, "elements")
        return torch.from_numpy(bits.astype(np.uint16)).view(_HALVES[proto.data_type]).reshape(dims)
    field, numpy_type = _TYPED_FIELDS[proto.data_type]
    values = getattr(proto, field)
    _check_count(where, dims, len(values), count, "elements")
    return torch.from_numpy(np.asarray(values).astype(numpy_type)).reshape(dims)


def _viewed(
    buffer: mmap.mmap | bytes | bytearray, start: int, stop: int, dims: tuple[int, ...], dtype: torch.dtype, where: str
) -> Tensor:
    """Return the little-endian elements in a part of a buffer, without a copy if it can be viewed as it is."""
    count, width = math.prod(dims), dtype.itemsize
    _check_count(where, dims, stop - start, count * width, "bytes")
    if not count:
        try:
            return torch.empty(dims, dtype=dtype)
        except RuntimeError as error:  # sizes whose product overflows, beside a 0
            raise problems.invalid(f"{where} declares shape {list(dims)}") from error
    stored = torch.uint8 if dtype == torch.bool else dtype
    if start % width or sys.byteorder == "big":
        part = np.frombuffer(buffer, dtype=f"V{width}", count=count, offset=start).view(f"u{width}")
        copied = (part.byteswap() if sys.byteorder == "big" else part).tobytes()
        tensor = torch.frombuffer(bytearray(copied), dtype=stored)
    else:
        tensor = torch.frombuffer(buffer, dtype=stored, count=count, offset=start)
    return tensor.ne(0).reshape(dims) if dtype == torch.bool else tensor.reshape(dims)


def all_finite(tensor: Tensor) -> bool:
    """Return whether no element is NaN or infinite, without a copy of the tensor."""
    return not tensor.numel() or all(bool(torch.isfinite(end)) for end in torch.aminmax(tensor))


def has_nan(tensor: Tensor) -> bool:
    """Return whether an element is NaN, without a copy of the tensor."""
    return bool(tensor.numel()) and bool(torch.isnan(torch.aminmax(tensor).min))


def _check_count(where: str, dims: tuple[int, ...], found: int, expected: int, unit: str) -> None:
    if found != expected:
        raise problems.invalid(
            f"{where} declares shape {list(dims)}, which takes {expected} {unit}, but holds {found}",
            shape=list(dims),
            expected=expected,
            found=found,
        )
