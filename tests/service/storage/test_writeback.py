from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest

from service.server.malloc import keep_freed_memory
from service.storage import writeback
from service.storage.store import Upload
from service.storage.writeback import start_writeback


def test_what_is_being_written_back_stays_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb", buffering=0) as file:
        file.write(b"a" * 100_000)
        start_writeback(file.fileno(), 0, 100_000)
        file.write(b"b")
    assert path.read_bytes() == b"a" * 100_000 + b"b"


def test_a_file_that_can_not_be_written_back_is_passed_over() -> None:
    read, write = os.pipe()
    start_writeback(read, 0, 1)
    os.close(read)
    os.close(write)


def test_a_system_that_can_not_be_told_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(name: object, **settings: object) -> object:
        return object()

    monkeypatch.setattr(ctypes, "CDLL", without)
    writeback._library.cache_clear()
    try:
        start_writeback(1, 0, 1)
        keep_freed_memory()
    finally:
        writeback._library.cache_clear()


def test_large_uploads_are_written_back_as_they_come_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[int, int]] = []
    monkeypatch.setattr("service.storage.store.start_writeback", lambda _, start, size: started.append((start, size)))
    with Upload(tmp_path, "batches") as upload:
        for _ in range(10):
            upload.write(bytes(4 << 20))
    assert started == [(0, 16 << 20), (16 << 20, 16 << 20)]
