"""The live workers; each updates its row regularly."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID, uuid4

from sqlalchemy import JSON, BigInteger, DateTime, Integer, Text, Uuid, delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

import wsb_engine
from service.database.engine import Base


class WorkerRow(Base):
    __tablename__ = "workers"

    id: Mapped[UUID] = mapped_column(Uuid, primary_key=True, default=uuid4)
    host: Mapped[str] = mapped_column(Text)
    process: Mapped[int] = mapped_column(Integer)
    device: Mapped[str] = mapped_column(Text)
    engine_version: Mapped[str] = mapped_column(Text)
    protections: Mapped[list[str]] = mapped_column(JSON)
    """Active protections of the worker's children on its host."""
    memory_bytes: Mapped[int | None] = mapped_column(BigInteger)
    """Memory limit of one analysis; null for a worker of a version that does not report it."""
    started_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    seen_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())


async def register(session: AsyncSession, *, device: str, protections: Sequence[str], memory_bytes: int) -> UUID:
    """Add this process's row and delete those of workers that have been silent for an hour."""
    await session.execute(delete(WorkerRow).where(WorkerRow.seen_at < func.now() - timedelta(hours=1)))
    row = WorkerRow(
        host=socket.gethostname(),
        process=os.getpid(),
        device=device,
        engine_version=wsb_engine.__version__,
        protections=list(protections),
        memory_bytes=memory_bytes,
    )
    session.add(row)
    await session.flush()
    return row.id


async def seen(session: AsyncSession, worker: UUID) -> None:
    await session.execute(update(WorkerRow).where(WorkerRow.id == worker).values(seen_at=func.now()))


async def unregister(session: AsyncSession, worker: UUID) -> None:
    await session.execute(delete(WorkerRow).where(WorkerRow.id == worker))


async def alive(session: AsyncSession, *, within_seconds: float) -> Sequence[WorkerRow]:
    """List the workers whose last heartbeat is at most ``within_seconds`` old, oldest worker first."""
    query = (
        select(WorkerRow)
        .where(WorkerRow.seen_at > func.now() - timedelta(seconds=within_seconds))
        .order_by(WorkerRow.started_at, WorkerRow.id)
    )
    return (await session.scalars(query)).all()


def offers(worker: WorkerRow, device: str) -> bool:
    """Whether the worker serves analyses that request ``device``."""
    return device in ("auto", worker.device, worker.device.partition(":")[0])
