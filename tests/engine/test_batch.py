"""Batches: what is read, what is refused, and with which code."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save
from support.hostile import safetensors, tensor

import wsb_engine as wsb

X = np.arange(6, dtype=np.float32).reshape(3, 2)
Y = np.array([0, 1, 1])


def npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def npy_header(shape: tuple[int, ...], dtype: Any = "<f8") -> bytes:
    text = repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def archive(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return buffer.getvalue()


def code_of(source: Any) -> str:
    with pytest.raises(wsb.BatchError) as caught:
        wsb.load_batch(source)
    assert caught.value.advice
    return caught.value.code


def test_npz_is_read_with_its_dtypes() -> None:
    batch = wsb.load_batch(npz(x=X, y=Y, weights=[1, 2, 3]))
    assert batch.x["x"].dtype == torch.float32
    np.testing.assert_array_equal(batch.y, Y)
    np.testing.assert_array_equal(batch.weights, [1.0, 2.0, 3.0])
    assert len(batch) == 3
    assert batch.sha256 is not None


def test_compressed_and_fortran_ordered_arrays_are_read() -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, x=np.asfortranarray(X), y=Y)
    np.testing.assert_array_equal(wsb.load_batch(buffer.getvalue()).x["x"].numpy(), X)


def test_big_endian_and_unsigned_arrays_are_read() -> None:
    batch = wsb.load_batch(npz(x=X.astype(">f8"), y=Y.astype(np.uint16), ids=np.array([1, 2, 3], dtype=np.uint32)))
    np.testing.assert_array_equal(batch.x["x"].numpy(), X)
    assert batch.x["ids"].dtype == torch.int64


def test_safetensors_are_read_half_precision_included() -> None:
    tensors = {"x": torch.from_numpy(X).bfloat16(), "y": torch.from_numpy(Y)}
    batch = wsb.load_batch(save(tensors))
    assert batch.x["x"].dtype == torch.bfloat16
    np.testing.assert_array_equal(batch.y, Y)


def test_a_path_is_read(tmp_path: Path) -> None:
    path = tmp_path / "batch.npz"
    path.write_bytes(npz(x=X, y=Y))
    assert len(wsb.load_batch(path)) == 3
    assert len(wsb.load_batch(str(path))) == 3


def test_floating_labels_that_are_whole_numbers_are_classes() -> None:
    assert wsb.Batch(X, Y.astype(np.float64)).y.dtype == np.int64


def test_a_column_of_labels_is_flattened() -> None:
    assert wsb.Batch(X, Y[:, None]).y.shape == (3,)


@pytest.mark.parametrize("y", [np.zeros((3, 2, 2)), np.array([[1.5, -0.5]] * 3), np.arange(12).reshape(3, 2, 2)])
def test_labels_of_any_shape_stay_as_they_are(y: np.ndarray) -> None:
    assert np.array_equal(wsb.Batch(X, y).y, y)


def test_tensors_that_require_gradients_are_detached() -> None:
    batch = wsb.Batch(torch.from_numpy(X).requires_grad_(), torch.from_numpy(Y))
    assert not batch.x["x"].requires_grad


def test_a_batch_in_memory_has_no_digest() -> None:
    assert wsb.Batch(X, Y).sha256 is None


@pytest.mark.parametrize(
    ("source", "code"),
    [
        (b"", "batch_empty_file"),
        (b"hello, world", "batch_unrecognized"),
        (b"\x80\x04\x95\x00", "pickle_refused"),
        (npy_header((2,)) + bytes(16), "batch_unrecognized"),
        (npz(x=X, y=Y)[:-40], "batch_invalid"),
        (npz(x=X, y=Y)[:60], "batch_invalid"),
        (npz(x=X), "labels_missing"),
        (npz(y=Y), "inputs_missing"),
        (npz(x=X, y=Y[:2]), "row_count_mismatch"),
        (npz(x=np.float32(1), y=Y), "row_count_mismatch"),
        (npz(x=X[:0], y=Y[:0]), "empty_batch"),
        (npz(x=X[:, :0], y=Y), "no_features"),
        (npz(x=np.where(X == 3, np.nan, X), y=Y), "batch_not_finite"),
        (npz(x=np.where(X == 3, np.inf, X), y=Y), "batch_not_finite"),
        (npz(x=X, y=np.array([[np.nan, 1], [1, 0], [1, 0]])), "batch_not_finite"),
        (npz(x=np.array([1, "a", None], dtype=object), y=Y), "object_array"),
        (npz(x=X, y=np.array([1, "a", None], dtype=object)), "object_array"),
        (npz(x=X.astype(complex), y=Y), "unsupported_array_dtype"),
        (npz(x=X, y=np.array(["2020", "2021", "2022"], dtype="datetime64[Y]")), "unsupported_array_dtype"),
        (npz(x=X, y=np.zeros((3, 0))), "labels_shape"),
        (npz(x=X, y=np.array([["a", "b"], ["c", "d"], ["e", "f"]])), "labels_shape"),
        (npz(x=X, y=Y, weights=[1, -1, 1]), "weights_invalid"),
        (npz(x=X, y=Y, weights=[0, 0, 0]), "weights_invalid"),
        (npz(x=X, y=Y, weights=[1, 1]), "weights_invalid"),
        (npz(x=X, y=Y, weights=[1, np.nan, 1]), "batch_not_finite"),
        (archive(x=npy_header((10**9, 40)) + bytes(64), y=npy_header((3,)) + bytes(24)), "batch_invalid"),
        (archive(x=npy_header((-1, 4)), y=npy_header((3,)) + bytes(24)), "batch_invalid"),
        (archive(x=npy_header((2**63 - 1,), "<U0"), y=npy_header((3,)) + bytes(24)), "batch_invalid"),
        (archive(x=npy_header((8, 2**62), "|S0"), y=npy_header((3,)) + bytes(24)), "batch_invalid"),
        (archive(x=npy_header((2**62, 0)), y=npy_header((3,)) + bytes(24)), "batch_invalid"),
        (archive(x=npy_header((0, 2**70)), y=npy_header((3,)) + bytes(24)), "batch_invalid"),
        (save({"x": torch.zeros(3, 2).to(torch.float8_e4m3fn), "y": torch.arange(3)}), "unsupported_array_dtype"),
        (save({"x": torch.zeros(3, 2).to(torch.complex64), "y": torch.arange(3)}), "unsupported_array_dtype"),
        (archive(x=npy_header((3,), ("<f8", (4,))) + bytes(96), y=npy_header((3,)) + bytes(24)), "batch_invalid"),
        (safetensors({"x": tensor("F64", [1] * 65, 0, 8), "y": tensor("I64", [1], 8, 16)}, bytes(16)), "batch_invalid"),
        (archive(x=b"\x93NUMPY\x09\x00" + bytes(60), y=b""), "batch_invalid"),
        (archive(x=b"not an array", y=b""), "batch_invalid"),
        (archive(**{f"a{i}": b"" for i in range(300)}), "batch_too_large"),
        ((50).to_bytes(8, "little") + b"{" + b" " * 80, "batch_invalid"),
        (save({"x": torch.zeros(2, 2), "y": torch.zeros(2, dtype=torch.int64)})[:-8], "batch_invalid"),
        ("/nonexistent/batch.npz", "batch_not_found"),
    ],
)
def test_a_bad_batch_has_its_code(source: Any, code: str) -> None:
    assert code_of(source) == code


def test_a_member_that_appears_twice_is_refused() -> None:
    buffer = io.BytesIO()
    content = npy_header((3,)) + bytes(24)
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("x.npy", content)
        with pytest.warns(UserWarning, match="Duplicate name"):
            file.writestr("x.npy", content)
    assert code_of(buffer.getvalue()) == "batch_invalid"


def test_a_bomb_is_refused_before_it_is_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsb_engine.sources.batch_file.MAX_BYTES", 1 << 20)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, x=np.zeros((1 << 18, 2)), y=np.zeros(1 << 18, dtype=int))
    assert code_of(buffer.getvalue()) == "batch_too_large"
