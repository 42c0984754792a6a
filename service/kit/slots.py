"""Limits how many of something may be open at once in this process, shared by tenants."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from service.errors import ServiceError


class Slots:
    """A counter with a limit; callers are rejected at once when there is no slot for them.

    A tenant may hold as many slots as are still free for others: half of them alone, a third each of two, and so on. So
    there is always room for a tenant that holds none, whatever the others do (the dynamic thresholds of Choudhury and
    Hahne, 1998, for queues that share a memory).

    Args:
        limit: Number of slots.
        tenants: Number of tenants; a single one may take all slots.
    """

    def __init__(self, limit: int, *, tenants: int) -> None:
        self.limit = limit
        self._shared = tenants > 1
        self._taken = Counter[str]()

    @property
    def taken_by(self) -> Counter[str]:
        """Number of slots by tenant."""
        return self._taken

    def left(self, tenant: str) -> int:
        """Return how many more slots a tenant could take now."""
        free = self.limit - self._taken.total()
        # Every slot that it takes is one that others no longer have.
        return max((free - self._taken[tenant] + 1) // 2, 0) if self._shared else free

    @contextmanager
    def requested(self, tenant: str) -> Iterator[bool]:
        """Hold a slot during the block if one is free for the tenant; yield whether it was."""
        granted = self.left(tenant) > 0
        self._taken[tenant] += granted
        try:
            yield granted
        finally:
            self._taken[tenant] -= granted
            self._taken += Counter()  # drop those at 0

    @contextmanager
    def taken(self, tenant: str, full: ServiceError) -> Iterator[None]:
        """Hold a slot during the block.

        Raises:
            ServiceError: ``full``, if no slot is free for this tenant.
        """
        with self.requested(tenant) as granted:
            if not granted:
                raise full
            yield
