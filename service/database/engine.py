"""The database: engine, sessions, migrations at startup, named locks."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import psycopg
import structlog
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from procrastinate.schema import SchemaManager
from sqlalchemy import Connection, MetaData, text
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase

from service.kit import audit
from service.kit.gate import TENANT, Gate
from service.settings import CONNECTION_SECONDS, DATABASE_CONNECTIONS, RESERVED_CONNECTIONS, Settings

_MIGRATION_LOCK = 0x777362
_FIRST_DELAY, _LONGEST_DELAY = 0.1, 2.0
_KEPT_CONNECTIONS = 5
"""Idle connections that stay open."""

T = TypeVar("T")

log = structlog.get_logger(__name__)


class NewerDatabaseError(Exception):
    """The tables were migrated by a later version of the service."""

    def __init__(self, revision: str) -> None:
        super().__init__(
            f"The database belongs to a newer version of the service: its tables are at revision {revision}, and this "
            f"version knows them up to {latest_revision()}. Start the newer version, or restore a backup that is older "
            "than the upgrade. [database_newer]"
        )


class Base(DeclarativeBase):
    """Base of the service's tables; constraints have explicit names, so that migrations can refer to them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class Database:
    """One engine and its sessions.

    Args:
        url: postgresql://…, as in ``Settings.database_url``.
        connections: Most connections at a time.
        reserved: How many of them no single tenant may take.
        seconds: Longest wait for a connection.
    """

    def __init__(
        self,
        url: str,
        *,
        connections: int = DATABASE_CONNECTIONS,
        reserved: int = RESERVED_CONNECTIONS,
        seconds: float = CONNECTION_SECONDS,
    ) -> None:
        self.conninfo = url
        address = "postgresql+psycopg://" + url.split("://", 1)[1]
        self.engine: AsyncEngine = create_async_engine(
            address,
            pool_pre_ping=True,
            hide_parameters=True,
            pool_size=min(_KEPT_CONNECTIONS, connections),
            max_overflow=max(connections - _KEPT_CONNECTIONS, 0),
            pool_timeout=seconds,
        )
        self._sessions = async_sessionmaker(self.engine, expire_on_commit=False)
        self._gate = Gate(connections, reserve=reserved)
        self._seconds = seconds

    @classmethod
    def configured(cls, url: str, settings: Settings) -> Database:
        """Open a database as the settings say."""
        return cls(
            url,
            connections=settings.database_connections,
            reserved=settings.database_reserved_connections,
            seconds=settings.database_connection_seconds,
        )

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncSession]:
        """Open a session; its changes are committed together at the end, or not at all.

        Requests of different tenants take turns if all connections are in use.

        Raises:
            sqlalchemy.exc.TimeoutError: if no connection becomes free in time.
        """
        async with AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(self._gate.passed(TENANT.get(), seconds=self._seconds))
            except TimeoutError as error:
                raise PoolTimeoutError("no connection to the database became free") from error
            yield await stack.enter_async_context(self._sessions.begin())

    async def close(self) -> None:
        await self.engine.dispose()

    async def migrate(self) -> None:
        """Migrate the service's tables and the queue's; processes that start together take turns.

        Raises:
            NewerDatabaseError: if a later version of the service has migrated them; nothing is changed then.
        """
        async with self.engine.begin() as connection:
            before = await migrate(connection)
        if before != latest_revision():
            audit.note_by_operator("migrate", before=before, after=latest_revision())

    async def is_current(self) -> bool:
        """Whether the tables are of this version, or of a newer one, on which a running process keeps working."""
        async with self.engine.connect() as connection:
            known = await connection.scalar(text("SELECT to_regclass('alembic_version')"))
            if known is None:
                return False
            revision = await connection.scalar(text("SELECT version_num FROM alembic_version"))
            return revision == latest_revision() or (revision is not None and is_newer(revision))


async def migrate(connection: AsyncConnection) -> str | None:
    """Migrate in the connection's transaction; return the earlier revision. Raises as ``Database.migrate``."""
    await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
    before = await connection.run_sync(_known_revision)
    await _migrate_queue(connection)
    await connection.run_sync(_migrate_tables)
    return before


async def step_back(connection: AsyncConnection, revision: str) -> None:
    """Take current, empty tables back to how they were at an earlier revision of this version's migrations."""
    await connection.run_sync(_migrate_tables, revision)


def is_away(error: BaseException | None) -> bool:
    """Whether an error of any library means that the database can't be reached or has dropped a connection."""
    while error is not None:
        if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError | PoolTimeoutError):
            return True
        error = error.__cause__
    return False


def is_full(error: BaseException | None) -> bool:
    """Whether an error of any library means that the disk of the database is full."""
    while error is not None:
        if isinstance(error, psycopg.errors.DiskFull):
            return True
        error = error.__cause__
    return False


async def patiently(action: Callable[[], Awaitable[T]], *, seconds: float) -> T:
    """Run an action on the database; retry it for ``seconds`` while that is away, or as long as its disk is full.

    If the connection is lost during a commit, the outcome is unknown: the action must be safe to repeat.

    Raises:
        Exception: the error of the last attempt.
    """
    give_up, delay = time.monotonic() + seconds, _FIRST_DELAY
    while True:
        try:
            return await action()
        except Exception as error:
            if not is_away(error) or (time.monotonic() + delay > give_up and not is_full(error)):
                raise
            log.warning("database_away", error=str(error).partition("\n")[0], again_in=delay)
        await asyncio.sleep(delay)
        delay = min(2 * delay, _LONGEST_DELAY)


async def lock(session: AsyncSession, name: str) -> None:
    """Hold the lock ``name`` until the session's transaction ends."""
    await session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": lock_key(name)})


async def try_lock_shared(session: AsyncSession, name: str) -> bool:
    """Hold the lock ``name`` together with others until the transaction ends; False if someone holds it alone."""
    query = text("SELECT pg_try_advisory_xact_lock_shared(:key)")
    return bool(await session.scalar(query, {"key": lock_key(name)}))


async def driver_connection(session: AsyncSession) -> psycopg.AsyncConnection[Any]:
    """Return the psycopg connection of a session's transaction, for libraries that use it directly."""
    connection = await session.connection()
    raw = await connection.get_raw_connection()
    driver = raw.driver_connection
    if not isinstance(driver, psycopg.AsyncConnection):
        raise TypeError(f"the driver is {type(driver).__name__}, not psycopg")
    return driver


@cache
def latest_revision() -> str | None:
    """Return the latest revision of this package's migrations, which are fixed while a process runs."""
    return ScriptDirectory.from_config(_alembic_config()).get_current_head()


def is_newer(revision: str) -> bool:
    """Whether a revision belongs to a later version of the service, because this one doesn't have it."""
    return revision not in {
        script.revision for script in ScriptDirectory.from_config(_alembic_config()).walk_revisions()
    }


def lock_key(name: str) -> int:
    """Return the number by which Postgres knows the lock ``name``."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)


def _alembic_config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    return config


def _known_revision(connection: Connection) -> str | None:
    """Return the revision of the tables; None if there are none. Raises NewerDatabaseError."""
    revision = MigrationContext.configure(connection).get_current_revision()
    if revision is not None and is_newer(revision):
        raise NewerDatabaseError(revision)
    return revision


def _migrate_tables(connection: Connection, back_to: str | None = None) -> None:
    config = _alembic_config()
    config.attributes["connection"] = connection
    if back_to is None:
        command.upgrade(config, "head")
    elif back_to != latest_revision():
        command.downgrade(config, back_to)


async def _migrate_queue(connection: AsyncConnection) -> None:
    """Install Procrastinate's schema, or the migrations of its newer version."""
    files = _queue_migrations()
    await connection.execute(text("CREATE TABLE IF NOT EXISTS queue_migrations (name text PRIMARY KEY)"))
    fresh = await connection.scalar(text("SELECT to_regclass('procrastinate_jobs')")) is None
    if fresh:
        await _run_script(connection, SchemaManager.get_schema())
    applied = set((await connection.scalars(text("SELECT name FROM queue_migrations"))).all())
    for file in files:
        if file.name in applied:
            continue
        if not fresh:
            await _run_script(connection, file.read_text(encoding="utf-8"))
        await connection.execute(text("INSERT INTO queue_migrations VALUES (:name)"), {"name": file.name})


def _queue_migrations() -> list[Path]:
    return sorted(Path(SchemaManager.get_migrations_path()).glob("*.sql"))


async def _run_script(connection: AsyncConnection, script: str) -> None:
    raw = await connection.get_raw_connection()
    driver = raw.driver_connection
    if driver is None:
        raise TypeError("the connection is closed")
    # Directly by the driver: a script has many statements, and its % signs are not parameters.
    await driver.execute(script.encode())
