"""A real Postgres for the session, a fresh database a test, and the real application over a real socket."""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from support.service import Files, Service, StartService, npz_batch, onnx_mlp, running_service

from service.database.engine import Database
from service.server.postgres import embedded_postgres
from service.settings import Settings

_names = itertools.count()


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """URL of a Postgres with a migrated database named ``template``."""
    # Not below pytest's own folder: every pytest of the same user closes that to others, and as root the
    # server runs as another user.
    with tempfile.TemporaryDirectory(prefix="wsb-test-") as folder, embedded_postgres(Path(folder)) as url:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CREATE DATABASE template")
        asyncio.run(_migrate(_named(url, "template")))
        yield url


@pytest.fixture
def database_url(postgres: str) -> Iterator[str]:
    """URL of a database with current, empty tables."""
    name = f"test_{next(_names)}"
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE template")
    yield _named(postgres, name)
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def _named(url: str, name: str) -> str:
    head, _, query = url.partition("?")
    return f"{head.rsplit('/', 1)[0]}/{name}?{query}"


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

    def start(*, worker: bool = True, device: str = "cpu", engine: bool = False, **overrides: Any) -> Service:
        values = {
            "database_url": database_url,
            "data_dir": tmp_path / "data",
            "poll_seconds": 0.5,
            "shutdown_seconds": 0.5,
            **overrides,
        }
        context = running_service(Settings(_env_file=None, **values), worker=worker, device=device, engine=engine)
        running.append(context)
        return context.__enter__()

    yield start
    for context in running:
        context.__exit__(None, None, None)


@pytest.fixture
def service(start_service: StartService) -> Service:
    return start_service()


@pytest.fixture
def api(start_service: StartService) -> Service:
    """Without a worker: nothing leaves the queue."""
    return start_service(worker=False)


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
