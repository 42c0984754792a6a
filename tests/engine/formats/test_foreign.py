"""Files that people give in place of a model or a batch: each is named, and following its advice works."""

from __future__ import annotations

import io
import json
import os
import pathlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import safetensors.torch
import skl2onnx
import torch
from sklearn.linear_model import LogisticRegression
from support.exports import share_operators
from support.golden import Golden
from torch import nn

import wsb_engine as wsb
from wsb_engine.formats import foreign
from wsb_engine.formats.detect import batch_format, model_format

GOLDEN = Golden("paper_three_layer_tanh")
X = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
Y = np.array([0, 1, 0, 1, 1, 0])


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))


def saved(thing: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(thing, buffer, **options)
    return buffer.getvalue()


def npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def zipped(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"")
    return buffer.getvalue()


def traced() -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is deprecated, its files are not
        torch.jit.save(torch.jit.trace(net(), torch.from_numpy(X), check_trace=False), buffer)
    return buffer.getvalue()


def dumped(thing: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    joblib.dump(thing, buffer, **options)
    return buffer.getvalue()


FITTED = LogisticRegression().fit(X, Y)
WEIGHTS = safetensors.torch.save({"w": torch.zeros(3)})
ARRAYS = safetensors.torch.save({"x": torch.zeros(3, 2), "y": torch.zeros(3, dtype=torch.int64)})

MODELS: dict[str, tuple[bytes, str, str, str]] = {
    "weights": (saved(net().state_dict()), "pickle_refused", "state_dict", "load_state_dict"),
    "weights, as once": (
        saved(net().state_dict(), _use_new_zipfile_serialization=False), "pickle_refused", "state_dict", "load_state",
    ),
    "a module": (saved(net()), "pickle_refused", "pickled torch module", "torch.onnx.export"),
    "weights without a graph": (WEIGHTS, "model_unrecognized", "safetensors", "load_state_dict"),
    "an estimator": (dumped(FITTED), "pickle_refused", "scikit-learn", "skl2onnx"),
    "a pickled estimator": (pickle.dumps(FITTED), "pickle_refused", "scikit-learn", "skl2onnx"),
    "a compressed estimator": (dumped(FITTED, compress=3), "model_unrecognized", "joblib", "skl2onnx"),
    "keras": (zipped("config.json", "model.weights.h5"), "model_unrecognized", "Keras", "format='onnx'"),
    "old keras": (b"\x89HDF\r\n\x1a\n" + bytes(64), "model_unrecognized", "Keras", "format='onnx'"),
    "a batch": (npz(x=X, y=Y), "arguments_swapped", "batch", "wsb analyze MODEL BATCH"),
    "another batch": (ARRAYS, "arguments_swapped", "batch", "wsb analyze MODEL BATCH"),
    "arrays": (npz(w=X), "model_unrecognized", "no graph", "torch.onnx.export"),
    "an array": (np.lib.format.magic(1, 0) + bytes(64), "model_unrecognized", ".npy", "wsb analyze MODEL BATCH"),
    "a table": (b"a,b,label\n1,2,0\n3,4,1\n", "model_unrecognized", "CSV", "wsb analyze MODEL BATCH"),
}  # fmt: skip
BATCHES: dict[str, tuple[bytes, str, str, str]] = {
    "a model": (GOLDEN.onnx(), "arguments_swapped", "model", "wsb analyze MODEL BATCH"),
    "another model": (traced(), "arguments_swapped", "model", "wsb analyze MODEL BATCH"),
    "tensors": (saved({"x": torch.zeros(2)}), "pickle_refused", "torch.save", "torch.load"),
    "tensors, as once": (
        saved({"x": X}, _use_new_zipfile_serialization=False), "pickle_refused", "torch.save", "torch.load",
    ),
    "a table": (b"\xef\xbb\xbfa;b;\xc3\xa9\n1;2;0\n", "batch_unrecognized", "CSV", "wsb batch batch.npz --csv FILE"),
    "an image": (b"\x89PNG\r\n\x1a\n" + bytes(99), "batch_unrecognized", "image", "wsb batch batch.npz --images"),
    "an array": (np.lib.format.magic(1, 0) + bytes(64), "batch_unrecognized", ".npy", "numpy.load('y.npy')"),
    "a list": (b'{"x": [[1, 2]], "y": [0]}', "batch_unrecognized", "JSON", "numpy.savez"),
    "a column store": (b"PAR1" + bytes(64), "batch_unrecognized", "Parquet", "numpy.savez"),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("as_file", [False, True])
def test_what_is_no_model_is_named(name: str, as_file: bool, tmp_path: Path) -> None:
    data, code, words, advice = MODELS[name]
    source: bytes | Path = data
    if as_file:
        source = tmp_path / "model"
        source.write_bytes(data)
    with pytest.raises(wsb.ModelError, match=re.escape(words)) as caught:
        wsb.load_model(source)
    assert caught.value.code == code
    assert advice in caught.value.advice


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("as_file", [False, True])
def test_what_is_no_batch_is_named(name: str, as_file: bool, tmp_path: Path) -> None:
    data, code, words, advice = BATCHES[name]
    source: bytes | Path = data
    if as_file:
        source = tmp_path / "batch"
        source.write_bytes(data)
    with pytest.raises(wsb.BatchError, match=re.escape(words)) as caught:
        wsb.load_batch(source)
    assert caught.value.code == code
    assert advice in caught.value.advice


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_the_advice_for_weights_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    share_operators()
    for name, data in (
        ("w.pt", saved(net().state_dict())),
        ("w.safetensors", safetensors.torch.save(net().state_dict())),
    ):
        Path(name).write_bytes(data)
        with pytest.raises(wsb.ModelError) as caught:
            wsb.load_model(name)
        commands = re.findall(r"\w[\w.]*\.\w+\(.*?\)+(?=[;.]|$)", caught.value.advice.replace("FILE", name))
        scope = {"torch": torch, "safetensors": safetensors, "model": net(), "example_inputs": (torch.from_numpy(X),)}
        scope["model"].load_state_dict({key: 0 * value for key, value in net().state_dict().items()})
        for command in commands:
            exec(command, scope)  # noqa: S102 - the advice itself
        report = wsb.analyze(wsb.load_model("model.onnx"), wsb.Batch(X, Y))
        assert report.loss.value == pytest.approx(
            wsb.analyze(wsb.from_module(net()), wsb.Batch(X, Y)).loss.value, rel=1e-5
        )
        Path("model.onnx").unlink()


def test_the_advice_for_an_estimator_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    joblib.dump(FITTED, "model.joblib", compress=3)
    with pytest.raises(wsb.ModelError) as caught:
        wsb.load_model("model.joblib")
    given = re.search(r"\((classifier = .*?\))\), and convert it: (.*?)\. Else", caught.value.advice)
    assert given is not None
    names = {"joblib": joblib, "pathlib": pathlib, "skl2onnx": skl2onnx, "X": X}
    exec("; ".join(given.groups()).replace("FILE", "model.joblib"), names)  # noqa: S102 - the advice itself
    assert wsb.load_model("model.onnx").resolve().classes == (0, 1)


def test_the_advice_for_saved_tensors_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save((torch.from_numpy(X), torch.from_numpy(Y)), "batch.pt")
    with pytest.raises(wsb.BatchError) as caught:
        wsb.load_batch("batch.pt")
    commands = re.findall(r"x, y = .*?\)|numpy.savez\(.*?\)", caught.value.advice.replace("FILE", "batch.pt"))
    assert len(commands) == 2
    exec("; ".join(commands), {"torch": torch, "numpy": np})  # noqa: S102 - the advice itself
    assert wsb.load_batch("batch.npz").y.tolist() == Y.tolist()


NAMED: dict[str, dict[str, Any]] = {
    "split": {"X_test": X, "y_test": Y},
    "images": {"images": X, "labels": Y},
    "tokens": {"input_ids": Y[:, None], "attention_mask": Y[:, None], "labels": Y},
    "one label": {"x": X, "target": Y},
}


@pytest.mark.parametrize("name", NAMED)
def test_the_advice_for_arrays_named_otherwise_works(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arrays = NAMED[name]
    np.savez("batch.npz", **arrays)
    with pytest.raises(wsb.BatchError) as caught:
        wsb.load_batch("batch.npz")
    assert caught.value.code == "labels_missing"
    for key, value in arrays.items():
        assert f"{key!r} {value.dtype} {list(value.shape)}" in caught.value.message
    exec(caught.value.advice.partition("the labels: ")[2].rstrip("."), {"numpy": np})  # noqa: S102 - the advice itself
    batch = wsb.load_batch("batch.npz")
    assert batch.y.tolist() == Y.tolist()
    assert list(batch.x) == (["input_ids", "attention_mask"] if len(arrays) == 3 else ["x"])


def test_the_advice_for_pickled_arrays_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = np.empty(6, dtype=object)
    rows[:] = [*X]
    np.savez("batch.npz", x=rows, y=Y)
    with pytest.raises(wsb.BatchError) as caught:
        wsb.load_batch("batch.npz")
    assert caught.value.code == "object_array"
    command = "x = numpy.array(x.tolist())"
    assert command in caught.value.advice
    exec(command, scope := {"numpy": np, "x": rows})  # noqa: S102 - the advice itself
    np.savez("batch.npz", x=scope["x"], y=Y)
    np.testing.assert_array_equal(wsb.load_batch("batch.npz").x["x"].numpy(), X)


def _folder(path: Path, *names: str) -> Path:
    path.mkdir()
    for name in names:
        (path / name).write_text("")
    return path


@pytest.mark.parametrize(
    ("names", "words", "advice"),
    [
        (("saved_model.pb",), "SavedModel", "python -m tf2onnx.convert --saved-model"),
        (("config.json", "model.safetensors"), "Hugging Face", "from_pretrained"),
        (("epoch1.onnx", "notes.txt"), "folder", "epoch1.onnx"),
        ((), "folder", "path of a file"),
    ],
)
def test_a_folder_in_place_of_a_model_is_named(names: tuple[str, ...], words: str, advice: str, tmp_path: Path) -> None:
    with pytest.raises(wsb.ModelError, match=words) as caught:
        wsb.load_model(_folder(tmp_path / "folder", *names))
    assert caught.value.code == "model_unreadable"
    assert advice in caught.value.advice


def test_a_folder_in_place_of_a_batch_is_named(tmp_path: Path) -> None:
    for index, (name, advice) in enumerate((("cat", "wsb batch batch.npz --images"), ("b.npz", "b.npz"))):
        with pytest.raises(wsb.BatchError, match="folder") as caught:
            wsb.load_batch(_folder(tmp_path / str(index), name))
        assert caught.value.code == "batch_unrecognized"
        assert advice in caught.value.advice


def test_of_a_large_file_or_folder_only_the_beginning_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = tmp_path / "large.csv"
    with large.open("wb") as file:
        file.write(b"a,b\n1,2\n")
        os.truncate(large, 1 << 40)  # sparse
    for detect in (model_format, batch_format):
        with pytest.raises(wsb.EngineError) as caught:
            detect(large)
        assert caught.value.code.endswith("_unrecognized")
    monkeypatch.setattr(foreign, "LISTED_FILES", 3)
    folder = _folder(tmp_path / "many", *(f"{index}.onnx" for index in range(9)))
    with pytest.raises(wsb.ModelError) as many:
        wsb.load_model(folder)
    assert many.value.advice.count(".onnx") == 3


HOSTILE: dict[str, bytes] = {
    "a pickle of one name": b"\x80\x02" + b"ctorch._utils\n" * 5000,
    "a line without an end": b"a," * 100_000,
    "delimiters alone": b",\n" * 50_000,
    "text that ends within a character": "é,é\né,é\n".encode() * 20_000 + b"\xc3",
    "a safetensors header that is none": (1 << 20).to_bytes(8, "little") + b"{" + b'"y":' * 300_000,
    "a magic number alone": b"PAR1",
    "a zip of no members": b"PK\x05\x06" + bytes(18),
    "nested json": b"[" * 100_000,
    "keras in name only": zipped("config.json", "model.weights.h5", "../../etc/passwd"),
    "a bomb of names": zipped(*(f"x/data.pkl{index}" for index in range(2000))),
    "json": json.dumps({"a": 1}).encode(),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("read", [wsb.load_model, wsb.load_batch])
def test_a_hostile_file_gets_a_code(name: str, read: Callable[[bytes], object]) -> None:
    with pytest.raises(wsb.EngineError) as caught:
        read(HOSTILE[name])
    assert caught.value.code
    assert caught.value.advice
