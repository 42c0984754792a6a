"""The live workers; each updates its row regularly."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import JSON, BigInteger, DateTime, Integer, Text, Uuid, delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

import wsb_engine
from service.database.engine import Base
from service.kit.devices import kind_of, owned


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
    problem: Mapped[str | None] = mapped_column(Text)
    """Why the worker has left, if its device failed; the row then stays for an hour, or until one works there again."""
    started_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    seen_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())


async def register(
    session: AsyncSession, *, device: str, protections: Sequence[str], memory_bytes: int, problem: str | None = None
) -> UUID:
    """Add this process's row, and delete those of workers that have been silent for an hour or had left this device.

    Args:
        session: Session of the transaction.
        device: Name of the worker: the devices that it owns.
        protections: Active protections of its children.
        memory_bytes: Memory limit of one analysis.
        problem: Why it does not work; None if it does.
    """
    host = socket.gethostname()
    left = (WorkerRow.host == host) & (WorkerRow.device == device) & WorkerRow.problem.is_not(None)
    await session.execute(delete(WorkerRow).where((WorkerRow.seen_at < func.now() - timedelta(hours=1)) | left))
    row = WorkerRow(
        host=host,
        process=os.getpid(),
        device=device,
        engine_version=wsb_engine.__version__,
        protections=list(protections),
        memory_bytes=memory_bytes,
        problem=problem,
    )
    session.add(row)
    await session.flush()
    return row.id


async def seen(session: AsyncSession, worker: UUID) -> None:
    await session.execute(update(WorkerRow).where(WorkerRow.id == worker).values(seen_at=func.now()))


async def leave(session: AsyncSession, worker: UUID, problem: str) -> None:
    """Record why a worker leaves; it counts as none from then on."""
    await session.execute(update(WorkerRow).where(WorkerRow.id == worker).values(problem=problem, seen_at=func.now()))


async def failed(session: AsyncSession) -> Sequence[WorkerRow]:
    """List the workers that have left within an hour because their device failed, oldest first."""
    recent = WorkerRow.seen_at > func.now() - timedelta(hours=1)
    query = select(WorkerRow).where(WorkerRow.problem.is_not(None), recent).order_by(WorkerRow.seen_at, WorkerRow.id)
    return (await session.scalars(query)).all()


async def unregister(session: AsyncSession, worker: UUID) -> None:
    await session.execute(delete(WorkerRow).where(WorkerRow.id == worker))


async def alive(session: AsyncSession, *, within_seconds: float) -> Sequence[WorkerRow]:
    """List the workers whose last heartbeat is at most ``within_seconds`` old, oldest worker first."""
    query = (
        select(WorkerRow)
        .where(WorkerRow.problem.is_(None), WorkerRow.seen_at > func.now() - timedelta(seconds=within_seconds))
        .order_by(WorkerRow.started_at, WorkerRow.id)
    )
    return (await session.scalars(query)).all()


def offers(worker: WorkerRow, options: Mapping[str, Any]) -> bool:
    """Whether the worker serves analyses with these options."""
    return owner_offers(worker.device, options)


def owner_offers(name: str, options: Mapping[str, Any]) -> bool:
    """Whether a worker of this name, which names its devices, serves analyses with these options."""
    devices, several, device = owned(name), options.get("devices"), options["device"]
    if several is None:
        return device == "auto" or device in devices or device in map(kind_of, devices)
    return len(devices) > 1 and (several == "all" or set(several) <= set(devices))
