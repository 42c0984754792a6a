"""Batches written to files are read back as they were."""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path

import numpy as np
import pytest
import torch

import wsb_engine as wsb

SHARED = torch.arange(12.0).reshape(4, 3)
BATCHES = {
    "floats": wsb.Batch(np.random.default_rng(0).normal(size=(4, 3)), [0, 1, 2, 1]),
    "several": wsb.Batch({"file": np.arange(4), "a/b": torch.ones(4, 2, dtype=torch.bool)}, [0, 1, 0, 1], [1, 2, 3, 4]),
    "soft": wsb.Batch(SHARED, [[0.5, 0.5], [1, 0], [0.25, 0.75], [0, 1]]),
    "halves": wsb.Batch({"h": SHARED.half(), "b": SHARED.bfloat16()}, [0, 1, 0, 1]),
    "shared": wsb.Batch(
        {"whole": SHARED, "same": SHARED, "part": SHARED[:, 1:], "turned": SHARED.T.reshape(4, 3).T.T}, [0] * 4
    ),
}


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("name", BATCHES)
def test_a_batch_comes_back_as_it_was(tmp_path: Path, name: str, suffix: str) -> None:
    batch, path = BATCHES[name], tmp_path / f"b{suffix}"
    batch.save(path)
    again = wsb.load_batch(path)
    assert set(again.x) == set(batch.x)
    for key, tensor in batch.x.items():
        assert torch.equal(again.x[key].to(tensor.dtype), tensor)
        assert again.x[key].dtype == tensor.dtype or (suffix == ".npz" and tensor.dtype == torch.bfloat16)
    np.testing.assert_array_equal(again.y, batch.y)
    np.testing.assert_array_equal(again.weights, batch.weights)
    first = hashlib.sha256(path.read_bytes()).hexdigest()
    batch.save(path)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == first == again.sha256
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_a_file_has_the_permissions_of_any_other(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "other").touch()
    BATCHES["floats"].save(tmp_path / f"b{suffix}")
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 1


def test_text_labels_need_npz(tmp_path: Path) -> None:
    batch = wsb.Batch(SHARED, np.array(["a", "b", "a", "b"]))
    batch.save(tmp_path / "b.npz")
    assert wsb.load_batch(tmp_path / "b.npz").y.tolist() == ["a", "b", "a", "b"]
    with pytest.raises(wsb.BatchError, match="labels_text_unsupported"):
        batch.save(tmp_path / "b.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["b.npz"]


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(wsb.BatchError, match="batch_suffix_unknown"):
        BATCHES["floats"].save(tmp_path / "b.csv")


def test_a_failure_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "b.npz"
    path.write_bytes(b"before")

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", fail)
    with pytest.raises(OSError, match="No space"):
        BATCHES["floats"].save(path)
    assert path.read_bytes() == b"before"
    assert [each.name for each in tmp_path.iterdir()] == ["b.npz"]
