from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.objects import bucket

from service.storage.bucket import ObjectStore
from service.storage.folder import FolderStore
from service.storage.scratch import ScratchFolder
from service.storage.store import BlobCorruptError, BlobMissingError, BlobStore, Upload


@dataclass
class Stored:
    """A store, and a look behind it."""

    blobs: BlobStore
    names: Callable[[], list[str]]
    damage: Callable[[str], object]
    """Writes something else in the place of a blob."""

    def keep(self, *pieces: bytes) -> Upload:
        with self.blobs.receive("models") as upload:
            for piece in pieces:
                upload.write(piece)
            asyncio.run(self.blobs.keep(upload))
        return upload

    def copy(self, sha256: str, destination: Path) -> bytes:
        asyncio.run(self.blobs.copy("models", sha256, destination))
        return destination.read_bytes()


@pytest.fixture(params=["folder", "bucket"])
def stored(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stored]:
    folder = tmp_path / "blobs"
    if request.param == "folder":

        def names() -> list[str]:
            return [str(path.relative_to(folder)) for path in files_below(folder)]

        with FolderStore(folder) as blobs:
            yield Stored(blobs, names, lambda name: (folder / name).write_bytes(b"damaged"))
        return
    with bucket() as objects:
        for name, value in objects.environment.items():
            monkeypatch.setenv(name, value)
        with ObjectStore(objects.url, folder) as blobs:
            yield Stored(blobs, objects.names, lambda name: objects.overwrite(name, b"damaged"))


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.name != ".owner"]


def test_a_kept_upload_is_found_under_the_hash_of_its_content(stored: Stored, tmp_path: Path) -> None:
    upload = stored.keep(b"some ", b"bytes")
    digest = hashlib.sha256(b"some bytes").hexdigest()
    assert (upload.sha256, upload.size) == (digest, 10)
    assert stored.names() == [f"models/{digest[:2]}/{digest}"]
    assert stored.copy(digest, tmp_path / "copy") == b"some bytes"


def test_an_upload_that_is_not_kept_leaves_no_file(tmp_path: Path) -> None:
    with FolderStore(tmp_path) as blobs:
        with blobs.receive("models") as upload:
            upload.write(b"x" * 100_000)
            assert len(files_below(tmp_path)) == 1
        assert files_below(tmp_path) == []


def test_an_upload_that_fails_half_way_leaves_no_file(tmp_path: Path) -> None:
    with FolderStore(tmp_path) as blobs:
        with pytest.raises(TypeError), blobs.receive("models") as upload:
            upload.write(b"half" + None)  # type: ignore[operator]
        assert files_below(tmp_path) == []


def test_keeping_the_same_content_twice_stores_it_once(stored: Stored) -> None:
    for _ in range(2):
        stored.keep(b"same")
    assert len(stored.names()) == 1


def test_a_copy_shares_nothing_with_the_blob(stored: Stored, tmp_path: Path) -> None:
    upload = stored.keep(b"original")
    stored.copy(upload.sha256, tmp_path / "copy")
    (tmp_path / "copy").write_bytes(b"changed!")
    assert stored.copy(upload.sha256, tmp_path / "again") == b"original"


def test_a_blob_that_is_not_there_is_an_error_of_its_own(stored: Stored, tmp_path: Path) -> None:
    with pytest.raises(BlobMissingError, match="models/00"):
        stored.copy("00" * 32, tmp_path / "copy")


def test_a_blob_that_was_changed_where_it_is_stored_is_not_handed_out(stored: Stored, tmp_path: Path) -> None:
    upload = stored.keep(b"original")
    stored.damage(stored.names()[0])
    with pytest.raises(BlobCorruptError, match=upload.sha256):
        stored.copy(upload.sha256, tmp_path / "copy")


def test_a_damaged_blob_is_mended_when_it_is_sent_again(stored: Stored, tmp_path: Path) -> None:
    upload = stored.keep(b"original")
    stored.damage(stored.names()[0])
    stored.keep(b"original")
    assert stored.copy(upload.sha256, tmp_path / "copy") == b"original"


def test_a_removed_blob_is_gone_and_removing_it_again_changes_nothing(stored: Stored) -> None:
    upload = stored.keep(b"content")
    for _ in range(2):
        asyncio.run(stored.blobs.remove("models", upload.sha256))
    assert stored.names() == []


def test_the_folder_of_blobs_is_closed_to_others(tmp_path: Path) -> None:
    with FolderStore(tmp_path / "blobs"):
        assert (tmp_path / "blobs").stat().st_mode & 0o777 == 0o700


def test_a_scratch_folder_is_private_and_goes_with_its_owner(tmp_path: Path) -> None:
    with ScratchFolder(tmp_path) as scratch:
        assert scratch.path.stat().st_mode & 0o777 == 0o700
        (scratch.path / "file").touch()
    assert list(tmp_path.iterdir()) == []


def test_a_scratch_folder_of_a_live_owner_is_left_alone(tmp_path: Path) -> None:
    with ScratchFolder(tmp_path) as first, ScratchFolder(tmp_path):
        assert first.path.exists()


def test_a_scratch_folder_of_a_killed_owner_is_removed_by_the_next(tmp_path: Path) -> None:
    program = (
        "import sys, os, signal; from pathlib import Path; from service.storage.scratch import ScratchFolder\n"
        "with ScratchFolder(Path(sys.argv[1])) as s: (s.path / 'f').touch(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], env=environment, check=False)
    assert len(list(tmp_path.iterdir())) == 1
    with ScratchFolder(tmp_path) as scratch:
        assert list(tmp_path.iterdir()) == [scratch.path]
