"""Temporary folders that are removed on exit, or by the next process after a crash."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import Self

_LOCK = ".owner"


class ScratchFolder:
    """A private folder (0700) under ``parent``, held by a lock that the process loses when it ends.

    Entering also removes sibling folders whose owners have ended. The lock belongs to an open file, so neither a reused
    process id nor kill -9 can leave a folder behind for good.
    """

    def __init__(self, parent: Path) -> None:
        self.parent = parent
        self.path = parent
        self._lock: int | None = None

    def __enter__(self) -> Self:
        self.parent.mkdir(parents=True, exist_ok=True)
        # One process at a time: otherwise a folder could seem abandoned between its creation and its lock.
        guard = os.open(self.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(guard, fcntl.LOCK_EX)
            self._remove_abandoned()
            self.path = Path(tempfile.mkdtemp(prefix="scratch-", dir=self.parent))
            self._lock = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        finally:
            os.close(guard)
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _remove_abandoned(self) -> None:
        for folder in self.parent.glob("scratch-*"):
            try:
                lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                shutil.rmtree(folder, ignore_errors=True)
                continue
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            else:
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)
