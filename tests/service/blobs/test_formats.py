from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save
from support.hostile import field

from service.blobs.errors import TruncatedFileError, UnknownFormatError
from service.blobs.formats import read_format
from service.storage.store import Kind
from wsb_engine.errors import ModelError
from wsb_engine.formats import detect
from wsb_engine.formats.archives import NotAnArchiveError, member_names


def archive(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name in names:
            file.writestr(name, b"content")
    return buffer.getvalue()


def written(folder: Path, content: bytes) -> Path:
    path = folder / "file"
    path.write_bytes(content)
    return path


def test_an_onnx_file_is_recognised(tmp_path: Path, model_bytes: bytes) -> None:
    assert read_format("models", written(tmp_path, model_bytes)) == "onnx"


def test_a_torchscript_archive_is_recognised(tmp_path: Path) -> None:
    content = archive("m/data.pkl", "m/constants.pkl", "m/code/__torch__.py", "m/version")
    assert read_format("models", written(tmp_path, content)) == "torchscript"


def test_every_prefix_of_an_onnx_file_is_refused(tmp_path: Path, model_bytes: bytes) -> None:
    for length in range(len(model_bytes)):
        with pytest.raises((UnknownFormatError, TruncatedFileError)):
            read_format("models", written(tmp_path, model_bytes[:length]))


def test_an_onnx_file_that_lacks_its_end_is_called_truncated(tmp_path: Path, model_bytes: bytes) -> None:
    with pytest.raises(TruncatedFileError, match="bytes before its content does"):
        read_format("models", written(tmp_path, model_bytes[: len(model_bytes) // 2]))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"hello", "neither an ONNX file nor"),
        (b"\x80\x02}q\x00.", "a Python pickle"),
        (b"\x00" * 64, "neither an ONNX file nor"),
        (b"<!doctype html><html></html>", "an XML or HTML file"),
        (b'{"json": true}', "a JSON file"),
        (b"\x08\x07", "neither an ONNX file nor"),
        (archive("m/data.pkl", "m/data/0", "m/version"), "torch.save"),
        (archive("m/archive_format", "m/data/aotinductor/model/m.so"), "compiled code alone"),
        (archive("version", "serialized_exported_program.json"), "weights as a pickle"),
        (archive("word/document.xml"), "neither a PyTorch 2 nor a TorchScript one"),
    ],
)
def test_another_file_is_no_model(tmp_path: Path, content: bytes, told: str) -> None:
    with pytest.raises(UnknownFormatError, match=told):
        read_format("models", written(tmp_path, content))


def test_a_file_of_endless_fields_costs_little(tmp_path: Path) -> None:
    """Counted, not timed: a field of two bytes costs one read, and there is a limit to them."""
    path = written(tmp_path, b"\x08\x08" * (5 << 20))
    reads = 0

    class Counting(io.FileIO):
        def read(self, size: int = -1) -> bytes:
            nonlocal reads
            reads += 1
            return super().read(size)

    with Counting(path) as file, pytest.raises(ModelError):
        detect.require_onnx(file, 10 << 20)
    assert reads <= detect.TOP_LEVEL_FIELDS


def test_a_model_of_more_fields_than_are_looked_at_is_called_too_complex() -> None:
    note = field(14, b"")
    model = b"\x08\x0a" + field(7, b"") + field(8, b"\x10\x11") + note * detect.TOP_LEVEL_FIELDS
    with pytest.raises(ModelError) as caught:
        detect.model_format(model)
    assert (caught.value.code, caught.value.details["limit"]) == ("model_too_complex", detect.TOP_LEVEL_FIELDS)
    assert detect.model_format(model[: -10 * len(note)]) == "onnx"


def test_a_cut_off_archive_is_called_truncated(tmp_path: Path) -> None:
    content = archive("m/data.pkl", "m/constants.pkl", "m/code/x.py")
    kinds: tuple[Kind, ...] = ("models", "batches")
    for kind in kinds:
        with pytest.raises(TruncatedFileError):
            read_format(kind, written(tmp_path, content[: len(content) // 2]))


def test_the_two_batch_formats_are_recognised(tmp_path: Path, batch_bytes: bytes) -> None:
    assert read_format("batches", written(tmp_path, batch_bytes)) == "npz"
    assert read_format("batches", written(tmp_path, save({"x": np.zeros((2, 3))}))) == "safetensors"


@pytest.mark.parametrize("content", [b"x,y\n1,2\n", b"\x93NUMPY", archive("x.npy", "evil.pkl"), archive(), b"{"])
def test_another_file_is_no_batch(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UnknownFormatError):
        read_format("batches", written(tmp_path, content))


def test_a_safetensors_header_beyond_the_file_is_called_truncated(tmp_path: Path) -> None:
    with pytest.raises(TruncatedFileError):
        read_format("batches", written(tmp_path, struct.pack("<Q", 5000) + b'{"x"'))


@pytest.mark.slow
def test_names_of_a_zip64_archive_are_read(tmp_path: Path) -> None:
    names = [f"folder/{index}.npy" for index in range(70_000)]
    assert member_names(io.BytesIO(archive(*names))) == names


def test_a_directory_that_claims_too_many_entries_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(NotAnArchiveError):
        member_names(io.BytesIO(archive("a", "b", "c")), limit=2)
