"""Large arrays of a batch file are mapped, not read."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import wsb

X = np.random.default_rng(0).standard_normal((50, 7)).astype(np.float32)
Y = np.arange(50) % 3


@pytest.fixture(autouse=True)
def _map_small_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsb_engine.sources.batch_file.MAPPED_FROM", 1000)


def saved(path: Path) -> Path:
    """Write a batch of several inputs whose elements begin at odd addresses."""
    whole = np.arange(50 * 11).reshape(50, 11) % 7
    arrays = {"bits": whole % 2 == 0, "halves": whole.astype(np.float16), "x": X, "whole": whole.astype(np.int32)}
    if path.suffix == ".npz":
        np.savez(path, y=Y, **arrays)
    else:
        save_file(
            {name: torch.from_numpy(np.ascontiguousarray(each)) for name, each in {**arrays, "y": Y}.items()}, path
        )
    return path


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_mapped_arrays_are_those_of_the_file(tmp_path: Path, suffix: str) -> None:
    path = saved(tmp_path / f"batch{suffix}")
    content = path.read_bytes()
    mapped, read = wsb.load_batch(path), wsb.load_batch(content)
    assert mapped.sha256 == read.sha256 == hashlib.sha256(content).hexdigest()
    for name, tensor in read.x.items():
        assert mapped.x[name].dtype == tensor.dtype
        assert torch.equal(mapped.x[name].clone(), tensor)


def test_a_report_of_a_mapped_batch_has_the_same_numbers(tmp_path: Path) -> None:
    np.savez(tmp_path / "batch.npz", x=X, y=Y)
    torch.manual_seed(0)
    classifier = wsb.from_module(torch.nn.Linear(7, 3))
    mapped = wsb.analyze(classifier, wsb.load_batch(tmp_path / "batch.npz"))
    assert mapped.enclosure == wsb.analyze(classifier, wsb.Batch(X, Y)).enclosure


@pytest.mark.parametrize(
    ("array", "is_mapped"),
    [
        (X, True),
        (np.asfortranarray(X), False),
        (X.astype(">f4"), False),
        (X.astype(np.uint16), False),
        (X[:1], False),
    ],
)
def test_what_torch_can_not_use_in_place_is_read(tmp_path: Path, array: np.ndarray, is_mapped: bool) -> None:
    np.savez(tmp_path / "batch.npz", x=array, y=Y[: len(array)])
    x = wsb.load_batch(tmp_path / "batch.npz").x["x"]
    np.testing.assert_array_equal(x.clone().numpy(), array)
    # What is read is aligned; the elements of this file begin at an odd byte.
    assert (x.data_ptr() % 4 != 0) == is_mapped


def test_a_wrong_checksum_of_a_mapped_array_is_found(tmp_path: Path) -> None:
    np.savez(tmp_path / "batch.npz", x=X, y=Y)
    content = bytearray((tmp_path / "batch.npz").read_bytes())
    content[400] ^= 1
    (tmp_path / "batch.npz").write_bytes(content)
    with pytest.raises(wsb.BatchError) as caught:
        wsb.load_batch(tmp_path / "batch.npz")
    assert caught.value.code == "batch_invalid"


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_numbers_that_are_not_finite_are_found_in_the_last_block(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsb_engine.batch._BLOCK_BYTES", 100)
    x = X.copy()
    x[-1, -1] = np.nan
    path = tmp_path / f"batch{suffix}"
    np.savez(path, x=x, y=Y) if suffix == ".npz" else save_file(
        {"x": torch.from_numpy(x), "y": torch.from_numpy(Y)}, path
    )
    with pytest.raises(wsb.BatchError) as caught:
        wsb.load_batch(path)
    assert caught.value.code == "batch_not_finite"


def test_a_file_has_its_own_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsb_engine.sources.batch_file.MAX_BYTES", 1200)
    np.savez(tmp_path / "stored.npz", x=X, y=Y)
    np.savez_compressed(tmp_path / "deflated.npz", x=X, y=Y)
    assert len(wsb.load_batch(tmp_path / "stored.npz")) == 50
    for path, limits in ((tmp_path / "deflated.npz", {}), (tmp_path / "stored.npz", {"max_bytes": 1500})):
        with pytest.raises(wsb.BatchError) as caught:
            wsb.load_batch(path, **limits)
        assert caught.value.code == "batch_too_large"


@pytest.mark.slow
def test_the_product_of_a_batch_larger_than_memory_is_computed(tmp_path: Path) -> None:
    path, rows, features = tmp_path / "batch.npz", 60_000, 784
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open("x.npy", "w") as member:
            header = {"descr": "<f4", "fortran_order": False, "shape": (rows, features)}
            np.lib.format.write_array_header_1_0(member, header)
            block = np.random.default_rng(0).standard_normal((1000, features)).astype(np.float32).tobytes()
            for _ in range(rows // 1000):
                member.write(block)
        with archive.open("y.npy", "w") as member:
            np.lib.format.write_array(member, np.arange(rows) % 3)
    program = (
        "import resource, sys, torch, wsb\n"
        "import wsb_engine.sources.batch_file as batch_file\n"
        "from wsb_engine.analysis.monitor import Monitor\n"
        "from wsb_engine.analysis.problem import pose\n"
        "batch_file.MAPPED_FROM = 1 << 20\n"
        "torch.set_num_threads(1)\n"
        "options = wsb.Options(memory_limit=32 << 20)\n"
        "classifier, few = wsb.from_module(torch.nn.Linear(784, 3)), wsb.Batch(torch.randn(9, 784), [0, 1, 2] * 3)\n"
        "posed = lambda batch: pose(classifier, batch, options, Monitor(options, None, 0.0))\n"
        "v = torch.arange(2355.0)\n"
        "posed(few).hessian_product(1).vector(v)\n"
        "used = int(open('/proc/self/statm').read().split()[5]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (used + (128 << 20), used + (128 << 20)))\n"
        "product = posed(wsb.load_batch(sys.argv[1])).hessian_product(1)\n"
        "print(float(product.vector(v).norm()))\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 0 < float(done.stdout) < 1e6
