"""Measure the torch operations of a function: seconds by name, and bytes read and written."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from torch import Tensor

from wsb_engine.internals import DispatchMode, tree_leaves

PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "addbmm")


class Operations(DispatchMode):
    """Records every torch operation inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: Counter[str] = Counter()
        self.bytes = 0
        """Bytes read and written, as if nothing stayed in a cache."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        started = time.perf_counter()
        result = function(*args, **(kwargs or {}))
        self.seconds[function.overloadpacket.__name__] += time.perf_counter() - started
        if not function.is_view:
            touched = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
            self.bytes += sum(tensor.numel() * tensor.itemsize for tensor in touched)
        return result

    @property
    def products(self) -> float:
        """Seconds spent in matrix products."""
        return sum(self.seconds[name] for name in PRODUCTS)
