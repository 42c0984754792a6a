"""A real Postgres for the session, and the real application over a real socket: shared, or with a fresh database."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from support.service import Files, Service, StartService, npz_batch, onnx_mlp, running_service
from support.standing import Standing, fresh_database, named

from service.database.engine import Database
from service.server.postgres import embedded_postgres
from service.settings import Settings

MEMORY, LEAST_FREE = Path("/dev/shm"), 4 << 30  # noqa: S108 - a folder of a name that nobody can know follows
"""Databases come and go with hundreds of files each, which takes a file system on a disk longer and longer."""


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """URL of a Postgres with a migrated database named ``template``."""
    # Not below pytest's own folder: every pytest of the same user closes that to others, and as root the
    # server runs as another user.
    place = MEMORY if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > LEAST_FREE else None
    with tempfile.TemporaryDirectory(prefix="wsb-test-", dir=place) as folder, embedded_postgres(Path(folder)) as url:
        with psycopg.connect(url, autocommit=True) as connection:
            # Nothing here has to outlive a crash, and databases come and go.
            connection.execute("ALTER SYSTEM SET max_wal_size = '256MB'")
            for setting in ("fsync", "full_page_writes", "synchronous_commit"):
                connection.execute(f"ALTER SYSTEM SET {setting} = off")
            connection.execute("SELECT pg_reload_conf()")
            connection.execute("CREATE DATABASE template")
        asyncio.run(_migrate(named(url, "template")))
        yield url


@pytest.fixture
def database_url(postgres: str) -> Iterator[str]:
    """URL of a database with current, empty tables."""
    with fresh_database(postgres) as url:
        yield url


async def _migrate(url: str) -> None:
    database = Database(url)
    await database.migrate()
    await database.close()


@pytest.fixture
def start_service(database_url: str, tmp_path: Path) -> Iterator[StartService]:
    """Starts the API, and a worker with the fake entry unless ``worker=False``, on a device, with these settings.

    With ``engine=True`` the worker has the real engine.
    """
    running = []

    def start(
        *, worker: bool = True, device: str = "cpu", engine: bool = False, own_zygote: bool = False, **overrides: Any
    ) -> Service:
        values = {
            "database_url": database_url,
            "data_dir": tmp_path / "data",
            "poll_seconds": 0.5,
            "shutdown_seconds": 0.5,
            **overrides,
        }
        settings = Settings(_env_file=None, **values)
        context = running_service(settings, worker=worker, device=device, engine=engine, own_zygote=own_zygote)
        running.append(context)
        return context.__enter__()

    yield start
    for context in running:
        context.__exit__(None, None, None)


@pytest.fixture(scope="session")
def standing(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standing]:
    found = Standing(postgres, tmp_path_factory.mktemp("standing"))
    yield found
    found.close()


@pytest.fixture
def borrow_service(standing: Standing) -> Iterator[StartService]:
    """Gives a service with these settings that other tests have used and will use; it begins with empty tables."""
    yield standing.lend
    standing.take_back()


def _own_or_borrowed(request: pytest.FixtureRequest, *, worker: bool) -> Service:
    # Whoever starts other services wants them on the same database.
    own = "start_service" in request.fixturenames or {"service", "api"} <= set(request.fixturenames)
    found: Service = request.getfixturevalue("start_service" if own else "borrow_service")(worker=worker)
    return found


@pytest.fixture
def service(request: pytest.FixtureRequest) -> Service:
    return _own_or_borrowed(request, worker=True)


@pytest.fixture
def api(request: pytest.FixtureRequest) -> Service:
    """Without a worker: nothing leaves the queue."""
    return _own_or_borrowed(request, worker=False)


@pytest.fixture(scope="session")
def model_bytes() -> bytes:
    return onnx_mlp()


@pytest.fixture(scope="session")
def batch_bytes() -> bytes:
    return npz_batch()


@pytest.fixture
def files(model_bytes: bytes, batch_bytes: bytes) -> Files:
    """The parts of the smallest form for an analysis."""
    return {"model": model_bytes, "batch": batch_bytes}
