"""Check indices before a GPU does: there, an index out of range ends the process's use of the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from wsb_engine.internals import DispatchMode

aten = torch.ops.aten

_Ranges = Iterator[tuple[Tensor | None, int]]
"""Indices, each with the size that they must be below."""


def _rows(table: Tensor, index: Tensor, *_: Any) -> _Ranges:
    yield index, table.shape[0]


def _along(source: Tensor, dim: int, index: Tensor, *_: Any) -> _Ranges:
    yield index, source.shape[dim] if source.ndim else 1


def _each_axis(source: Tensor, indices: Sequence[Tensor | None], *_: Any) -> _Ranges:
    yield from zip(indices, source.shape, strict=False)


def _flat(source: Tensor, index: Tensor, *_: Any) -> _Ranges:
    yield index, source.numel()


_FROM_ZERO: dict[Any, Callable[..., _Ranges]] = {
    aten.embedding: _rows,
    **dict.fromkeys((aten.index_select, aten.gather, aten.scatter, aten.scatter_add, aten.index_add), _along),
}
"""Operators whose indices start at 0 → what to check."""
_FROM_END: dict[Any, Callable[..., _Ranges]] = {
    **dict.fromkeys((aten.index, aten.index_put, aten.index_put_), _each_axis),
    aten.take: _flat,
}
"""Operators that also count from the end, with negative indices."""


@contextmanager
def indices_in_range(device: torch.device) -> Iterator[None]:
    """Check every index inside the block on a GPU; each check waits for the device. A CPU checks them itself.

    Raises:
        IndexError: as a CPU's operators raise it.
    """
    if device.type == "cpu":
        yield
        return
    with _Checking():
        yield


class _Checking(DispatchMode):
    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        operator = function.overloadpacket
        for table, signed in ((_FROM_ZERO, False), (_FROM_END, True)):
            if operator in table:
                for index, size in table[operator](*args):
                    _check(index, size, signed)
        return function(*args, **(kwargs or {}))


def _check(index: Tensor | None, size: int, signed: bool) -> None:
    if index is None or not index.numel() or index.dtype in (torch.bool, torch.uint8):
        return
    least, most = (int(each) for each in torch.stack(torch.aminmax(index)).tolist())
    if least < (-size if signed else 0) or most >= size:
        raise IndexError(f"index {most if most >= size else least} is out of range for {size} entries")
