"""Raw weight files → tensors: sizes, strides and offsets are checked against the file before any tensor is made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from wsb_engine.errors import ModelError
from wsb_engine.formats.commands import SAVE_PT2, TO_ONNX
from wsb_engine.formats.graph.limits import LIMITS
from wsb_engine.formats.pt2 import problems
from wsb_engine.formats.pt2.archive import Archive
from wsb_engine.formats.pt2.fields import document, integer, take, variant

DTYPES: Mapping[int, torch.dtype] = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    12: torch.bool,
    13: torch.bfloat16,
}
"""Number of a dtype in the schema → dtype, for those that the reader computes with."""
VIEWED_BYTES = 1 << 30
"""Bytes that tensors may have in all beyond those of their storages, as views that repeat elements or overlap."""

STRIDED = 7
"""Number of the dense layout in the schema."""
_AGAIN = f"Save the program with torch 2.10 or later, which stores plain tensors as raw bytes: {SAVE_PT2}."
_PLAIN = f"Replace it by plain tensors (nn.Parameter, register_buffer) before the export. Or: {TO_ONNX}"


def dtype_of(number: Any, where: str) -> torch.dtype:
    """Return the dtype that a number of the schema stands for.

    Raises:
        ModelError: ``unsupported_dtype`` for complex numbers, 8-bit floats and the like.
    """
    if number not in DTYPES:
        raise ModelError(
            f"{where} has dtype number {str(number)[:20]} of the export schema, which is not supported",
            code="unsupported_dtype",
            advice="Export the model with floating, integer and boolean tensors of plain types.",
            dtype=str(number)[:20],
        )
    return DTYPES[number]


class Stored:
    """The tensors of a program by name: parameters, buffers and constants.

    Args:
        archive: The archive.
        program: Name of the program.

    Raises:
        ModelError: ``pt2_refused`` for weights or constants that are pickles, ``model_invalid``, ``model_too_large``,
            ``model_too_complex``, ``tensor_too_large``, ``unsupported_dtype``.
    """

    def __init__(self, archive: Archive, program: str) -> None:
        self._archive = archive
        self._storages: dict[str, memoryview] = {}
        self._booleans: dict[str, Tensor] = {}
        self._seen: set[object] = set()
        self._viewed = 0
        self.tensors: dict[str, Tensor] = {}
        for folder, what in (("weights", "weights"), ("constants", "constants")):
            self._read(f"data/{folder}/", f"data/{folder}/{program}", what)

    def getattr(self, name: str) -> Tensor:
        """Return a tensor, as the graph reads an attribute of the module."""
        return self.tensors[name]

    def _read(self, folder: str, prefix: str, what: str) -> None:
        if f"{prefix}.pt" in self._archive.members:
            raise problems.refused(f"its {what} as a pickle", _AGAIN, member=f"{prefix}.pt")
        config = take(document(self._archive, f"{prefix}_{what}_config.json"), "config", dict)
        problems.limit("tensors", len(self.tensors) + len(config), LIMITS.initialisers)
        for name, payload in config.items():
            if len(name) > LIMITS.name_bytes:
                raise problems.invalid("a tensor has a name that is too long")
            if take(payload, "use_pickle", bool):
                kind = "a custom object" if payload.get("tensor_meta") is None else "a tensor of a special class"
                raise problems.refused(f"{kind} {name!r} as a pickle", _PLAIN, tensor=name)
            if name in self.tensors:
                raise problems.invalid(f"the program has two tensors {name!r}")
            path = folder + take(payload, "path_name", str)
            self.tensors[name] = self._tensor(name, path, take(payload, "tensor_meta", dict))
        if self._viewed > sum(map(len, self._storages.values())) + VIEWED_BYTES:
            raise problems.too_large("all views of the stored tensors", self._viewed, VIEWED_BYTES)

    def _tensor(self, name: str, path: str, meta: Mapping[str, Any]) -> Tensor:
        where = f"tensor {name!r}"
        dtype = dtype_of(take(meta, "dtype", int), where)
        if take(meta, "layout", int) != STRIDED:
            raise ModelError(
                f"{where} is sparse",
                code="unsupported_dtype",
                advice="Export the model with dense tensors.",
                tensor=name,
            )
        sizes, strides = _integers(meta, "sizes"), _integers(meta, "strides")
        offset = _integer(take(meta, "storage_offset", dict))
        problems.limit(f"dimensions in {where}", len(sizes), LIMITS.rank)
        if len(sizes) != len(strides) or min((*sizes, *strides, offset), default=0) < 0:
            raise problems.invalid(f"{where} has sizes {sizes}, strides {strides} and offset {offset}")
        count = 1
        for size in sizes:
            count *= size
        if count > LIMITS.tensor_elements:
            raise problems.too_large(where, count, LIMITS.tensor_elements)
        if count == 0:
            try:
                return torch.empty(sizes, dtype=dtype)
            except RuntimeError as error:  # sizes whose product overflows, beside a 0
                raise problems.invalid(f"{where} has sizes {sizes}") from error
        storage = self._storage(path)
        last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
        if (last + 1) * dtype.itemsize > len(storage):
            raise problems.invalid(
                f"{where} needs {(last + 1) * dtype.itemsize} bytes of {path!r}, which has {len(storage)}", tensor=name
            )
        shape = (path, offset, tuple(sizes), tuple(strides), dtype)
        if shape not in self._seen:
            self._seen.add(shape)
            self._viewed += count * dtype.itemsize
        return self._elements(path, dtype).as_strided(sizes, strides, offset)

    def _elements(self, path: str, dtype: torch.dtype) -> Tensor:
        """Return the whole elements of a storage, which may end within one."""
        if dtype == torch.bool:
            # A byte other than 0 or 1 must not become a truth value as it is.
            if path not in self._booleans:
                self._booleans[path] = self._elements(path, torch.uint8).ne(0)
            return self._booleans[path]
        storage = self._storage(path)
        return torch.frombuffer(storage, dtype=dtype, count=len(storage) // dtype.itemsize)

    def _storage(self, path: str) -> memoryview:
        if path not in self._storages:
            self._storages[path] = self._archive.view(path)
        return self._storages[path]


def require_apart(parameters: Mapping[str, Tensor]) -> None:
    """Reject parameters that overlap in memory: neither independent nor tied as a whole.

    Raises:
        ModelError: ``pt2_overlapping_parameters``.
    """
    spans = sorted(_spans(parameters), key=lambda span: span[:2])
    for (_, end, one), (start, _, other) in pairwise(spans):
        if start < end:
            raise ModelError(
                f"parameters {one!r} and {other!r} overlap in memory",
                code="pt2_overlapping_parameters",
                advice="Give each parameter separate memory (parameter.data = parameter.data.clone()), or tie them "
                "as a whole, before the export.",
                parameters=[one, other],
            )


def _spans(parameters: Mapping[str, Tensor]) -> Iterator[tuple[int, int, str]]:
    """First byte, end and name of each parameter in memory."""
    for name, tensor in parameters.items():
        if tensor.numel():
            reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
            yield tensor.data_ptr(), tensor.data_ptr() + (reach + 1) * tensor.element_size(), name


def _integers(meta: Mapping[str, Any], key: str) -> list[int]:
    return [_integer(each) for each in take(meta, key, list)]


def _integer(union: Any) -> int:
    kind, value = variant(union)
    if kind != "as_int":
        raise problems.invalid("a stored tensor has a symbolic size")
    return integer(value)
