"""Limits how many of something may be open at once in this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from service.errors import ServiceError


class Slots:
    """A counter with a limit; callers are rejected at once when all slots are taken."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._taken = 0

    @contextmanager
    def taken(self, full: ServiceError) -> Iterator[None]:
        """Hold a slot during the block.

        Raises:
            ServiceError: ``full``, if no slot is free.
        """
        if self._taken >= self.limit:
            raise full
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1
