"""The machine that a check of a GPU runs on."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from wsb_engine import devices

REPEATS = 7


@dataclass(frozen=True)
class Machine:
    """Where a check runs.

    Args:
        dry: True to go through all steps on a CPU with small sizes: its numbers mean nothing.
    """

    dry: bool = False

    @property
    def name(self) -> str:
        """Name of the device in options."""
        return "cpu" if self.dry else "cuda:0"

    @property
    def device(self) -> torch.device:
        return torch.device(self.name)

    def of(self, real: int, small: int) -> int:
        """Return a size."""
        return small if self.dry else real

    def seconds(self, function: Callable[[], object]) -> float:
        """Return the median time of a call, after one that does not count."""
        function()
        found = []
        for _ in range(self.of(REPEATS, 1)):
            devices.synchronise(self.device)
            started = time.perf_counter()
            function()
            devices.synchronise(self.device)
            found.append(time.perf_counter() - started)
        return statistics.median(found)

    def peak(self) -> float:
        """Return the GiB of the GPU that torch held at most since the last call."""
        if self.dry:
            return 0.0
        found = torch.cuda.max_memory_allocated() / 2**30
        torch.cuda.reset_peak_memory_stats()
        return found
