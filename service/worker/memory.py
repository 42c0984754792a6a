"""Whether an analysis can fit in a worker's memory, judged by the sizes of its files alone."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import ScalarSelect, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from service.analyses.schemas import AnalysisError
from service.analyses.table import AnalysisRow
from service.blobs.table import BlobRow
from service.database import workers
from service.worker.elsewhere import LeftToOthersError

_VECTORS = 2
"""Vectors of parameter size that every analysis holds: the parameters and their gradient."""

MAPPED_FROM = 256 << 20
"""Bytes from which inputs may stay in the file, as in ``wsb_engine.sources.batch_file``, which imports torch."""


@dataclass(frozen=True, kw_only=True)
class MemoryBudget:
    """What determines whether an analysis fits in a worker."""

    memory_bytes: int
    """Memory limit of one analysis."""
    within_seconds: float
    """Silence after which another worker counts as lost."""


async def shortage(session: AsyncSession, row: AnalysisRow, budget: MemoryBudget) -> AnalysisError | None:
    """Return why the analysis can't succeed on any worker; None if it may succeed on this one.

    Args:
        session: Session to read with.
        row: Row of the analysis.
        budget: Budget of the worker that is about to start it.

    Raises:
        LeftToOthersError: if it may succeed on another live worker.
    """
    # auto takes float32 for large models.
    needed = least_bytes(*await _sizes(session, row), doubles=row.options["dtype"] == "float64")
    if needed <= budget.memory_bytes:
        return None
    for other in await workers.alive(session, within_seconds=budget.within_seconds):
        if workers.offers(other, row.options) and (other.memory_bytes or 0) >= needed:
            raise LeftToOthersError(str(row.id))
    return AnalysisError(
        code="out_of_memory",
        message=f"The analysis needs at least {needed} bytes of memory, more than any worker has.",
        advice="Use a smaller model or batch, dtype float32, or a worker with more memory.",
        details={"needed_bytes": needed, "limit_bytes": budget.memory_bytes},
    )


def least_bytes(model: int, batch: int, *, doubles: bool) -> int:
    """Return a lower bound on the memory of an analysis: reject what can't fit, try what might.

    Args:
        model: Size of the model file in bytes; its weights are assumed to be float32.
        batch: Size of the batch file in bytes.
        doubles: Whether the analysis works in float64.
    """
    return _VECTORS * model * (2 if doubles else 1) + (batch if batch < MAPPED_FROM else 0)


async def _sizes(session: AsyncSession, row: AnalysisRow) -> tuple[int, int]:
    """Sizes of the model and the batch in bytes; 0 if unknown."""

    def size(kind: str, sha256: str) -> ScalarSelect[int | None]:
        return select(func.max(BlobRow.size)).where(BlobRow.kind == kind, BlobRow.sha256 == sha256).scalar_subquery()

    model, batch = (await session.execute(select(size("models", row.model), size("batches", row.batch)))).one()
    return model or 0, batch or 0
