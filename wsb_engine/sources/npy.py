"""Arrays in numpy's format: their headers, checked before anything is allocated."""

from __future__ import annotations

import math
import tokenize
from typing import IO, Any

import numpy as np

from wsb_engine.errors import BatchError, first_line


def read_header(
    stream: IO[bytes], name: str, size: int, code: str = "npy_invalid"
) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read the header of an array: its shape, whether it is in Fortran order, and its dtype.

    Args:
        stream: The array's bytes from the first on; left where the elements begin.
        name: Name of the array or file, for messages.
        size: Bytes of header and elements, which the shape must account for.
        code: Code of the error for a header that is damaged or doesn't fit the size.

    Raises:
        BatchError: ``code``, ``object_array``.
    """
    start = stream.tell()
    try:
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
        elif version == (2, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
        else:
            raise damaged(name, f"it has .npy version {version}", code)
    except (ValueError, SyntaxError, tokenize.TokenError, MemoryError, RecursionError) as error:
        raise damaged(name, first_line(error), code) from error
    if dtype.hasobject:
        raise object_array(name)
    if any(extent < 0 for extent in shape) or not dtype.itemsize or dtype.subdtype is not None:
        raise damaged(name, f"it has shape {list(shape)} of {dtype}", code)
    held, count = size - (stream.tell() - start), math.prod(shape)
    if count * dtype.itemsize != held:
        raise damaged(name, f"it declares shape {list(shape)} of {dtype}, but holds {held:,} bytes", code)
    if not count:
        try:
            np.empty(shape, dtype)  # the extents beside a 0 may still be too large for numpy
        except ValueError as error:
            raise damaged(name, f"it has shape {list(shape)}: {error}", code) from error
    return shape, fortran, dtype


def object_array(name: str) -> BatchError:
    """Return the error for an array of Python objects."""
    variable = name if name.isidentifier() else "x"
    return BatchError(
        f"array {name!r} holds Python objects, which would need a pickle",
        code="object_array",
        advice=f"Make one array of it before saving: {variable} = numpy.array({variable}.tolist()); rows of different "
        "lengths have to be padded first.",
        array=name,
    )


def damaged(name: str, reason: str, code: str = "npy_invalid") -> BatchError:
    """Return the error for a file or array that can't be read."""
    return BatchError(
        f"{name} can't be read: {reason}",
        code=code,
        advice="Write it again with numpy.save or numpy.savez, without pickled objects.",
    )
