"""Threads of a CPU that each work on samples of their own.

Inside an operator, threads wait for each other at its end. Where operators are short, that takes longer than what is
gained; threads with samples of their own meet once a product.
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
"""Up to so many for a pass over all samples, threads inside of operators wait for each other longer than they save."""


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
    """So many threads, which share the processors that torch may use here and end with this object.

    Args:
        count: 1 is the caller's own thread.
    """

    def __init__(self, count: int = 1) -> None:
        self.count = count
        self._others: ThreadPoolExecutor | None = None

    def sum(
        self, term: Callable[[Item], Tensor], items: Sequence[Item], *, check: Callable[[], None] = lambda: None
    ) -> Tensor:
        """Σ term(item) in float64; each thread adds up its own terms, then their sums are added in order.

        Args:
            term: Gives a new tensor, each time of the same shape.
            items: At least one.
            check: Called by the caller's thread before each of its terms; may raise to stop all threads.

        Raises:
            Whatever ``check`` or ``term`` raises, for the first in the order of threads; none of them is at work any
            more then.
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
            # This thread works as well: to be woken takes as long as a small operator.
            total = _sum_with(some, term, own, check)
            wait(futures)
            # Still on its own part of the processors: a team of theirs would go on spinning beside the next sum.
            for future in futures:
                total += future.result()
        except BaseException:
            abandoned.set()
            raise
        finally:
            wait(futures)
            # The number is each thread's own, but what is set last also holds for threads that are started later.
            torch.set_num_threads(processors)
        return total


class _AbandonedError(Exception):
    """The caller's thread has failed, so that nobody waits for this sum."""


def _sum_with(
    processors: int, term: Callable[[Item], Tensor], items: Sequence[Item], check: Callable[[], None]
) -> Tensor:
    torch.get_num_threads()  # at its first use, a thread is given the number that was set last
    torch.set_num_threads(processors)
    return _sum(term, items, check)


def _sum(term: Callable[[Item], Tensor], items: Sequence[Item], check: Callable[[], None]) -> Tensor:
    check()
    total = term(items[0]).double()
    for item in items[1:]:
        check()
        total += term(item)
    return total
