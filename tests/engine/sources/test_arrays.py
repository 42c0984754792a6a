"""Arrays that numpy saved under other names: what is read, what is refused, and that no other rows are."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.hostile import Evil

import wsb_engine as wsb
from wsb_engine.sources.arrays import read_npy, read_npz
from wsb_engine.sources.samples import with_dtype, with_scaling

X = np.random.default_rng(0).normal(size=(30, 4, 3))
Y = np.arange(30) % 3


def ignore(_phase: str, _fraction: float) -> None: ...


def pair(folder: Path, x: Any = X, y: Any = Y) -> tuple[Path, Path]:
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", y)
    return folder / "x.npy", folder / "y.npy"


def header(shape: tuple[int, ...], dtype: str = "<f8", text: bytes | None = None) -> bytes:
    text = text or repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode() + b"\n"
    return b"\x93NUMPY\x02\x00" + struct.pack("<I", len(text)) + text


def archive(path: Path, compressed: bool = False, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return path


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "x", [X, X.astype(np.float32), np.asfortranarray(X), X.astype(">f8"), (X * 9).astype(np.int16)]
)
@pytest.mark.parametrize("rows", [None, 7])
@pytest.mark.parametrize("save", [None, np.savez, np.savez_compressed])
def test_the_chosen_rows_are_read(tmp_path: Path, x: Any, rows: int | None, save: Any) -> None:
    if save is None:
        samples = read_npy(*pair(tmp_path, x, np.arange(30)), rows=rows, progress=ignore)
    else:
        save(tmp_path / "a.npz", images=x, labels=np.arange(30), more=X)
        samples = read_npz(tmp_path / "a.npz", x=["images"], y="labels", rows=rows, progress=ignore)
        assert samples.notes == (("left out", "more"),)
    assert len(samples.y) == rows or rows is None
    np.testing.assert_array_equal(samples.x["x"], x[samples.y])
    assert samples.x["x"].dtype.newbyteorder("=") == x.dtype.newbyteorder("=")


def test_several_inputs_keep_their_names(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", ids=np.arange(60).reshape(30, 2), mask=np.ones((30, 2), bool), y=Y)
    samples = read_npz(tmp_path / "a.npz", x=["ids", "mask"], rows=5, progress=ignore)
    assert list(samples.x) == ["ids", "mask"]
    assert samples.x["ids"].dtype.kind == "i"


def test_a_member_is_read_block_by_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsb_engine.sources.arrays._BLOCK_BYTES", 200)
    np.savez(tmp_path / "a.npz", x=X, y=np.arange(30))
    samples = read_npz(tmp_path / "a.npz", rows=11, seed=2, progress=ignore)
    np.testing.assert_array_equal(samples.x["x"], X[samples.y])


@pytest.mark.parametrize(
    ("y", "more", "expected", "classes"),
    [
        (np.array(["b", "a", "b"]), {}, [1, 0, 1], ("a", "b")),
        (np.array([b"b", b"a", b"b"]), {}, [1, 0, 1], ("a", "b")),
        (np.array(["b", "a", "b"]), {"keep_labels": True}, ["b", "a", "b"], None),
        (np.array([[7], [3], [7]]), {"classes": ("3", "7")}, [[1], [0], [1]], ("3", "7")),
        (np.array([[0.1, 0.9], [1, 0], [0.5, 0.5]]), {}, [[0.1, 0.9], [1, 0], [0.5, 0.5]], None),
    ],
)
def test_labels_of_every_kind_are_read(
    tmp_path: Path, y: Any, more: dict[str, Any], expected: list[Any], classes: tuple[str, ...] | None
) -> None:
    samples = read_npy(*pair(tmp_path, X[:3], y), progress=ignore, **more)
    assert (samples.y.tolist(), samples.classes) == (expected, classes)


def test_rows_of_a_sparse_terabyte_are_read_at_once(tmp_path: Path) -> None:
    rows = 1 << 17
    content = header((rows, 1 << 20))
    with (tmp_path / "x.npy").open("wb") as file:
        file.write(content)
        file.truncate(len(content) + rows * (8 << 20))
    np.save(tmp_path / "y.npy", np.zeros(rows, np.int64))
    samples = read_npy(tmp_path / "x.npy", tmp_path / "y.npy", rows=2, progress=ignore)
    assert samples.x["x"].shape == (2, 1 << 20)
    with pytest.raises(wsb.BatchError, match=r"batch_too_large.*--rows 1024\."):
        read_npy(tmp_path / "x.npy", tmp_path / "y.npy", progress=ignore)


def test_a_bomb_is_unpacked_block_by_block(tmp_path: Path) -> None:
    # Half a GiB of zeros in half a MB, of which few rows are asked for
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        with file.open("x.npy", "w", force_zip64=True) as member:
            member.write(header((16, 1 << 22)))
            for _ in range(16):
                member.write(bytes(1 << 25))
        file.writestr("y.npy", npy(np.zeros(16, np.int64)))
    program = (
        "import resource, sys\nfrom pathlib import Path\nfrom wsb_engine.sources.arrays import read_npz\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\nbefore = peak()\n"
        "read_npz(Path(sys.argv[1]), rows=1, progress=lambda *_: None)\nprint(peak() - before)"
    )
    run = [sys.executable, "-c", program, str(path)]
    grown = int(subprocess.run(run, capture_output=True, text=True, check=True).stdout) * 1024
    assert grown < 200e6


ROWS = npy(np.zeros(3, np.int64))


@pytest.mark.parametrize(
    ("members", "code", "told"),
    [
        ({"y": ROWS}, "array_unknown", "it has y [3]"),
        ({"x": npy(np.eye(3)), "labels": ROWS}, "array_unknown", "x [3, 3], labels [3]"),
        ({"x": npy(np.eye(2)), "y": ROWS}, "row_count_mismatch", "[2, 2]"),
        ({"x": npy(np.float64(1)), "y": ROWS}, "row_count_mismatch", "[]"),
        ({"x": npy(np.array([Evil()] * 3)), "y": ROWS}, "object_array", "array 'x' holds"),
        ({"x": npy(np.eye(3)), "y": npy(np.array([Evil()] * 3))}, "object_array", "array 'y' holds"),
        ({"x": header((3, 1 << 40)), "y": ROWS}, "npy_invalid", "holds 0 bytes"),
        ({"x": header((3, -1)), "y": ROWS}, "npy_invalid", ""),
        ({"x": header((3, 10**30)), "y": ROWS}, "npy_invalid", ""),
        ({"x": header((), text=b"(" * 9000), "y": ROWS}, "npy_invalid", ""),
        (
            {"x": header((), text=b"{'descr': '<f8', 'shape': (3,)" + b" " * 200_000 + b"}"), "y": ROWS},
            "npy_invalid",
            "",
        ),
        ({"x": b"\x93NUMPY\x07\x00" + bytes(90), "y": ROWS}, "npy_invalid", "version"),
        ({"x": b"", "y": ROWS}, "npy_invalid", ""),
        ({"x": npy(np.eye(3)), "y": npy(np.zeros(3, complex))}, "unsupported_array_dtype", "complex"),
        ({"x": npy(np.eye(3)), "y": npy(np.zeros(3, [("a", int)]))}, "unsupported_array_dtype", ""),
        ({"x": npy(np.eye(0)), "y": npy(np.zeros(0))}, "empty_batch", ""),
    ],
)
def test_a_bad_archive_has_its_code(tmp_path: Path, members: dict[str, bytes], code: str, told: str) -> None:
    for compressed in (False, True):
        path = archive(tmp_path / f"{compressed}.npz", compressed, **members)
        with pytest.raises(wsb.BatchError) as caught:
            read_npz(path, progress=ignore)
        assert caught.value.code == code
        assert told in caught.value.message
    assert not Path("/tmp/wsb-was-here").exists()  # noqa: S108


def test_a_member_that_lies_about_its_size_is_refused(tmp_path: Path) -> None:
    content = archive(tmp_path / "a.npz", x=header((3, 4)) + bytes(96), y=ROWS).read_bytes()
    size = len(header((3, 4))) + 96
    lie = content.replace(struct.pack("<I", size), struct.pack("<I", size + 8))
    for damaged in (lie, content[:-30], content[: len(content) // 2], b"PK\x03\x04", b"no archive"):
        (tmp_path / "a.npz").write_bytes(damaged)
        with pytest.raises(wsb.BatchError, match=r"np[yz]_invalid"):
            read_npz(tmp_path / "a.npz", progress=ignore)


@pytest.mark.parametrize("damage", [lambda c: c[:-8], lambda c: c + bytes(8), lambda c: c[:50], lambda c: b""])
def test_a_damaged_array_is_refused(tmp_path: Path, damage: Any) -> None:
    x, y = pair(tmp_path)
    x.write_bytes(damage(x.read_bytes()))
    with pytest.raises(wsb.BatchError, match="npy_invalid"):
        read_npy(x, y, progress=ignore)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    x, _ = pair(tmp_path)
    for path in (tmp_path, Path("/dev/zero"), tmp_path / "none"):
        with pytest.raises(wsb.BatchError, match="source_not_found"):
            read_npy(x, path, progress=ignore)
        with pytest.raises(wsb.BatchError, match="source_not_found"):
            read_npz(path, progress=ignore)


def test_bytes_are_scaled_and_others_refused(tmp_path: Path) -> None:
    samples = read_npy(*pair(tmp_path, np.uint8([[0], [51], [255]]), Y[:3]), progress=ignore)
    assert with_scaling(samples, "unit").x["x"].tolist() == [[0], [np.float32(0.2)], [1]]
    assert with_scaling(samples, "symmetric").x["x"].tolist() == [[-1], [np.float32(51 / 127.5 - 1)], [1]]
    with pytest.raises(wsb.BatchError, match="inputs_not_bytes"):
        with_scaling(with_scaling(samples, "unit"), "unit")


def test_floating_inputs_are_converted_and_integers_stay(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", f=X, i=np.arange(30), b=np.ones(30, bool), y=Y)
    samples = read_npz(tmp_path / "a.npz", x=["f", "i", "b"], progress=ignore)
    assert [str(each.dtype) for each in with_dtype(samples, "float32").x.values()] == ["float32", "int64", "bool"]
    assert with_dtype(samples, "float64").x["f"].dtype == np.float64
    with pytest.raises(wsb.BatchError, match="inputs_not_whole"):
        with_dtype(samples, "int64")
    whole = read_npy(*pair(tmp_path, np.array([[1.0], [-3.0], [2.0**62]]), Y[:3]), progress=ignore)
    assert with_dtype(whole, "int64").x["x"].tolist() == [[1], [-3], [2**62]]
    huge = read_npy(*pair(tmp_path, np.array([[1e300]]), Y[:1]), progress=ignore)
    with pytest.raises(wsb.BatchError, match=r"batch_not_finite.*--dtype float64"):
        with_dtype(huge, "float32")
