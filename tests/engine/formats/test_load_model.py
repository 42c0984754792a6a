"""Files that are no model that can be read: each gets its own code and advice, and none is executed."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch

from wsb_engine import ModelError, load_model


class _Trap:
    def __reduce__(self) -> tuple[object, ...]:
        return (pytest.fail, ("the pickle was executed",))


def _zip(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"")
    return buffer.getvalue()


def _checkpoint() -> bytes:
    buffer = io.BytesIO()
    torch.save({"w": torch.zeros(2)}, buffer)
    return buffer.getvalue()


CASES = {
    "empty": (b"", "model_empty"),
    "text": (b"hello, I am a model", "model_unrecognized"),
    "random": (np.random.default_rng(0).bytes(1000), "model_unrecognized"),
    "pickle": (pickle.dumps(_Trap()), "pickle_refused"),
    "checkpoint": (_checkpoint(), "pickle_refused"),
    "torchscript without code": (_zip("m/data.pkl", "m/constants.pkl", "m/version"), "model_invalid"),
    "torchscript for mobile": (_zip("m/bytecode.pkl", "m/constants.pkl"), "torchscript_mobile_refused"),
    "exported program": (_zip("p/models/model.json", "p/archive_format"), "pt2_refused"),
    "old exported program": (_zip("serialized_exported_program.json", "version"), "pt2_refused"),
    "other archive": (_zip("readme.txt"), "model_unrecognized"),
    "broken archive": (_zip("m/data.pkl")[:40], "model_unrecognized"),
    "keras": (b"\x89HDF\r\n\x1a\n" + bytes(64), "model_unrecognized"),
    "tflite": (b"\x1c\x00\x00\x00TFL3" + bytes(64), "model_unrecognized"),
    "safetensors": (safetensors.numpy.save({"w": np.zeros(3)}), "model_unrecognized"),
}


@pytest.mark.parametrize(("data", "code"), CASES.values(), ids=CASES.keys())
def test_a_file_that_is_no_model_is_refused_with_its_own_code(data: bytes, code: str) -> None:
    with pytest.raises(ModelError) as caught:
        load_model(data)
    assert caught.value.code == code
    assert caught.value.advice


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nowhere") as caught:
        load_model(tmp_path / "nowhere.onnx")
    assert caught.value.code == "model_not_found"


def test_a_folder_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        load_model(str(tmp_path))
    assert caught.value.code == "model_unreadable"


def test_a_file_past_the_size_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large.onnx"
    with path.open("wb") as file:
        file.truncate(2**33 + 1)
    with pytest.raises(ModelError) as caught:
        load_model(path)
    assert caught.value.code == "model_too_large"
    with pytest.raises(ModelError) as caught:
        load_model(path, max_bytes=2**34)
    assert caught.value.code == "model_unrecognized"


@pytest.mark.parametrize("kind", ["onnx", "pt"])
def test_one_file_of_more_than_two_gibibytes_is_not_read_whole(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"large.{kind}"
    with path.open("wb") as file:
        if kind == "onnx":  # ir_version, opset_import, and a graph of 2 GiB
            file.write(b"\x08\x08" + b"\x42\x02\x10\x11" + b"\x3a\x80\x80\x80\x80\x08")
            file.truncate(file.tell() + 2**31)
        else:
            file.write(b"PK\x03\x04")
            file.truncate(2**31)
    if kind == "pt":
        with zipfile.ZipFile(path, "a") as archive:
            for name in ("m/data.pkl", "m/constants.pkl", "m/code/m.py"):
                archive.writestr(name, b"")
    with pytest.raises(ModelError) as caught:
        load_model(path)
    assert caught.value.code == "model_too_large"
    assert "external_data=True" in caught.value.advice


def test_a_pipe_is_no_model_and_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelError) as caught:
        load_model(tmp_path / "pipe")
    assert caught.value.code == "model_unreadable"
