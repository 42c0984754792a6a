"""CPU threads that each work on a share of the samples.

Threads inside an operator wait for each other at its end, which costs more than it saves if operators are short;
threads with separate samples meet once per product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from threading import Event
from typing import TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")

ONE_THREAD_OPERATIONS = 1e8
"""Operations of a pass over all samples up to which threads inside operators cost more than they save."""


@contextmanager
def threads_of(device: torch.device, *, one: bool) -> Iterator[None]:
    """Limit torch to one CPU thread inside the block."""
    if device.type != "cpu" or not one:
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Threads:
    """A pool of threads that share the processors that torch may use, and end with this object.

    Args:
        count: Number of threads; 1 is the caller's thread alone.
    """

    def __init__(self, count: int = 1) -> None:
        self.count = count
        self._others: ThreadPoolExecutor | None = None

    def sum(
        self, term: Callable[[Item], Tensor], items: Sequence[Item], *, check: Callable[[], None] = lambda: None
    ) -> Tensor:
        """Compute Σ term(item) in float64: each thread adds up its share, then the sums are added in order.

        Args:
            term: Returns a new tensor, always of the same shape.
            items: At least one item.
            check: Called by the caller's thread before each of its terms; may raise to stop all threads.

        Raises:
            Whatever ``check`` or ``term`` raises, of the first thread in order; all threads have stopped by then.
        """
        own, *shares = [share for i in range(self.count) if (share := items[i :: self.count])]
        if not shares:
            return _sum(term, own, check)
        if self._others is None:
            self._others = ThreadPoolExecutor(self.count - 1, "samples")
        processors = torch.get_num_threads()
        some = max(1, processors // self.count)
        abandoned = Event()

        def go_on() -> None:
            if abandoned.is_set():
                raise _AbandonedError

        futures = [self._others.submit(_sum_with, some, term, share, go_on) for share in shares]
        try:
            # This thread works too: waking one takes as long as a small operator.
            total = _sum_with(some, term, own, check)
            wait(futures)
            # Still on its share of the processors: more threads would keep spinning during the next sum.
            for future in futures:
                total += future.result()
        except BaseException:
            abandoned.set()
            raise
        finally:
            wait(futures)
            # The number is per thread, but the last one set also applies to threads that start later.
            torch.set_num_threads(processors)
        return total


class _AbandonedError(Exception):
    """The caller's thread has failed, so this sum is no longer needed."""


def _sum_with(
    processors: int, term: Callable[[Item], Tensor], items: Sequence[Item], check: Callable[[], None]
) -> Tensor:
    torch.get_num_threads()  # a thread takes the number that was set last when it first uses torch
    torch.set_num_threads(processors)
    return _sum(term, items, check)


def _sum(term: Callable[[Item], Tensor], items: Sequence[Item], check: Callable[[], None]) -> Tensor:
    check()
    total = term(items[0]).double()
    for item in items[1:]:
        check()
        total += term(item)
    return total
