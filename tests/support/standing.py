"""Services that stay for many tests, one after another: to start one takes longer than most tests run."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, LiteralString

import httpx
import psycopg

from service.settings import Settings
from support.service import Service, running_service, until

MOST = 2
"""Services that wait for a test at the same time; each looks into its database now and then."""

EMPTY = """
SET session_replication_role = replica;  -- which heeds neither references nor triggers
DO $$ DECLARE name text; BEGIN
    FOR name IN SELECT tablename FROM pg_tables WHERE schemaname = 'public'
        -- Those whose rows belong to the service itself stay.
        AND tablename NOT IN ('alembic_version', 'procrastinate_workers', 'queue_migrations', 'workers')
    LOOP
        EXECUTE format('DELETE FROM %I', name);
    END LOOP;
    PERFORM setval(format('%I', sequencename)::regclass, start_value, false) FROM pg_sequences
        WHERE schemaname = 'public' AND sequencename NOT LIKE 'procrastinate%';  -- a worker remembers its jobs
END $$
"""

OWN: tuple[LiteralString, ...] = (
    "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY tablename",
    "SELECT version_num FROM alembic_version",
    "SELECT id FROM procrastinate_workers ORDER BY id",
    "SELECT id, device, problem FROM workers ORDER BY id",
)

_names = itertools.count()


def named(url: str, name: str) -> str:
    """The URL of another database of the same server."""
    head, _, query = url.partition("?")
    return f"{head.rsplit('/', 1)[0]}/{name}?{query}"


@contextmanager
def fresh_database(postgres: str) -> Iterator[str]:
    """The URL of a database with current, empty tables; it is dropped at the end."""
    name = f"test_{next(_names)}"
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE template")
    yield named(postgres, name)
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@dataclass
class _Kept:
    service: Service
    worker: bool
    end: ExitStack
    headers: httpx.Headers
    at_start: object


class Standing:
    """Lends a service to one test after another, and empties its database and folders in between.

    One that a test has left in another state than it found it is ended, and the next test gets another.

    Args:
        postgres: URL of a server with a migrated database named ``template``.
        folder: Where the services have their data folders.
    """

    def __init__(self, postgres: str, folder: Path) -> None:
        self._postgres, self._folder = postgres, folder
        self._kept: dict[str, _Kept] = {}
        """By settings; the one that was lent last is the last."""
        self._lent: set[str] = set()

    def lend(self, *, worker: bool = True, **settings: Any) -> Service:
        """A service with these settings, with empty tables and folders, until ``take_back``."""
        key = repr((worker, sorted(settings.items())))
        kept = self._kept.pop(key, None) or self._start(worker, settings)
        self._kept[key] = kept
        self._lent.add(key)
        return kept.service

    def take_back(self) -> None:
        """Prepares what was lent for the next test."""
        lent, self._lent = self._lent, set()
        for key in lent:
            if not _cleaned(self._kept[key]):
                self._kept.pop(key).end.close()
        while len(self._kept) > MOST:
            self._kept.pop(next(iter(self._kept))).end.close()

    def close(self) -> None:
        for kept in self._kept.values():
            kept.end.close()
        self._kept.clear()

    def _start(self, worker: bool, settings: dict[str, Any]) -> _Kept:
        with ExitStack() as end:
            url = end.enter_context(fresh_database(self._postgres))
            place = {"database_url": url, "data_dir": self._folder / str(next(_names))}
            values = {**place, "poll_seconds": 5.0, "shutdown_seconds": 0.5, **settings}
            service = end.enter_context(running_service(Settings(_env_file=None, **values), worker=worker))
            if worker:  # which is ready a moment before the queue knows it
                until(lambda: service.sql("SELECT id FROM procrastinate_workers"))
            headers = httpx.Headers(service.client.headers)
            return _Kept(service, worker, end.pop_all(), headers, _state(service))


def _state(service: Service) -> object:
    """What tells whether a test has changed more than is emptied."""
    with psycopg.connect(str(service.settings.database_url)) as connection:
        own = [connection.execute(query).fetchall() for query in OWN]
    return own, (service.settings.blob_dir / "incoming").is_dir()


def _cleaned(kept: _Kept) -> bool:
    service = kept.service
    service.client.headers = kept.headers.copy()
    service.client.cookies.clear()
    if service.stopping.is_set() or service.worker_stop.is_set() or service.worker_left:
        return False
    try:
        if kept.worker:
            service.cancel_all()
        until(lambda: not service.leftovers(), seconds=20)
        with psycopg.connect(str(service.settings.database_url)) as connection:
            connection.execute(EMPTY)
        for kind in ("models", "batches", "optimizer_states"):
            for entry in (service.settings.blob_dir / kind).glob("*"):
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        return _state(service) == kept.at_start
    except (AssertionError, OSError, psycopg.Error, httpx.HTTPError):
        return False
