from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from service.scratch import ScratchFolder
from service.storage import BlobMissingError, FolderStore


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.name != ".owner"]


def test_a_kept_upload_is_found_under_the_hash_of_its_content(tmp_path: Path) -> None:
    with FolderStore(tmp_path / "blobs") as blobs:
        with blobs.receive("models") as upload:
            upload.write(b"some ")
            upload.write(b"bytes")
            asyncio.run(blobs.keep(upload))
        digest = hashlib.sha256(b"some bytes").hexdigest()
        assert (upload.sha256, upload.size) == (digest, 10)
        asyncio.run(blobs.copy("models", digest, tmp_path / "copy"))
    assert (tmp_path / "copy").read_bytes() == b"some bytes"


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


def test_keeping_the_same_content_twice_stores_it_once(tmp_path: Path) -> None:
    with FolderStore(tmp_path) as blobs:
        for _ in range(2):
            with blobs.receive("batches") as upload:
                upload.write(b"same")
                asyncio.run(blobs.keep(upload))
        assert len(files_below(tmp_path)) == 1


def test_a_copy_shares_nothing_with_the_blob(tmp_path: Path) -> None:
    with FolderStore(tmp_path / "blobs") as blobs, blobs.receive("models") as upload:
        upload.write(b"original")
        asyncio.run(blobs.keep(upload))
        asyncio.run(blobs.copy("models", upload.sha256, tmp_path / "copy"))
        (tmp_path / "copy").write_bytes(b"changed!")
        asyncio.run(blobs.copy("models", upload.sha256, tmp_path / "again"))
    assert (tmp_path / "again").read_bytes() == b"original"


def test_a_blob_that_is_not_there_is_an_error_of_its_own(tmp_path: Path) -> None:
    with FolderStore(tmp_path) as blobs, pytest.raises(BlobMissingError, match="models/00"):
        asyncio.run(blobs.copy("models", "00" * 32, tmp_path / "copy"))


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
        "import sys, os, signal; from pathlib import Path; from service.scratch import ScratchFolder\n"
        "with ScratchFolder(Path(sys.argv[1])) as s: (s.path / 'f').touch(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], env=environment, check=False)
    assert len(list(tmp_path.iterdir())) == 1
    with ScratchFolder(tmp_path) as scratch:
        assert list(tmp_path.iterdir()) == [scratch.path]
