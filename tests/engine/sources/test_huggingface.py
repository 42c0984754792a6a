"""Datasets of Hugging Face on disk, through a stand-in with the library's interface: the library is no dependency."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image as Images

import wsb_engine as wsb
from wsb_engine.sources.huggingface import read_dataset
from wsb_engine.sources.images import Pixels
from wsb_engine.sources.samples import Samples


class Image: ...


class ClassLabel:
    names = ("neg", "pos")


class Dataset:
    def __init__(self, columns: dict[str, list[Any]], features: dict[str, Any], **form: Any) -> None:
        self._columns, self.features, self._form = columns, features, form
        self.column_names = list(columns)

    def __len__(self) -> int:
        return len(next(iter(self._columns.values())))

    def select(self, rows: Any) -> Dataset:
        picked = {name: [values[row] for row in rows] for name, values in self._columns.items()}
        return Dataset(picked, self.features, **self._form)

    def with_format(self, kind: str, columns: list[str], dtype: Any = None) -> Dataset:
        return Dataset({name: self._columns[name] for name in columns}, self.features, kind=kind, dtype=dtype)

    def __getitem__(self, key: Any) -> Any:
        if not self._form:
            return {name: decoded(values[key]) for name, values in self._columns.items()}
        return {name: self._array(values[key]) for name, values in self._columns.items()}

    def _array(self, values: list[Any]) -> Any:
        if isinstance(values[0], list) and len({len(value) for value in values}) > 1:
            return np.array(values, dtype=object)
        array = np.array(values)
        return array.astype(self._form["dtype"] or np.float32) if array.dtype.kind == "f" else array


def png(level: int) -> bytes:
    buffer = io.BytesIO()
    Images.new("RGB", (3, 2), (level, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def decoded(value: Any) -> Any:
    return Images.open(io.BytesIO(value)) if isinstance(value, bytes) else value


TABLE = Dataset(
    {
        "ids": [[1, 2], [3, 4], [5, 6]],
        "ragged": [[1], [2, 3], [4]],
        "float": [0.1, 0.2, 0.3],
        "image": [png(0), png(51), png(255)],
        "text": ["b", "a", "b"],
        "label": [1, 0, 1],
    },
    {
        "ids": "List(int64)",
        "ragged": "List(int64)",
        "float": "Value('float64')",
        "image": Image(),
        "text": "Value('string')",
        "label": ClassLabel(),
    },
)


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    library = ModuleType("datasets")
    library.Image = Image  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", library)

    def run(*x: str, y: str = "label", loaded: Any = TABLE, **more: Any) -> Samples:
        def load(_folder: str) -> Any:
            if loaded is None:
                raise FileNotFoundError("neither a Dataset nor a DatasetDict")
            return loaded

        library.load_from_disk = load  # type: ignore[attr-defined]
        return read_dataset(tmp_path, x=x, y=y, pixels=Pixels(), progress=lambda *_: None, **more)

    return run


def test_columns_become_arrays_with_the_names_of_the_classes(read: Any) -> None:
    samples = read("ids", "float")
    assert samples.x["ids"].tolist() == [[1, 2], [3, 4], [5, 6]]
    assert samples.x["float"].tolist() == [0.1, 0.2, 0.3]
    assert (samples.y.tolist(), samples.classes) == ([1, 0, 1], ("neg", "pos"))
    assert list(read("ids").x) == ["x"]


def test_images_are_decoded(read: Any) -> None:
    x = read("image").x["x"]
    assert x.shape == (3, 3, 2, 3)
    np.testing.assert_array_equal(x[:, 0, 0, 0], np.float32([0, 0.2, 1]))


def test_text_labels_are_numbered_or_kept(read: Any) -> None:
    assert read("ids", y="text").y.tolist() == [1, 0, 1]
    assert read("ids", y="text", classes=("b", "a")).y.tolist() == [0, 1, 0]
    assert read("ids", y="text", keep_labels=True).y.tolist() == ["b", "a", "b"]
    assert read("ids", keep_labels=True).y.tolist() == ["pos", "neg", "pos"]


def test_a_subset_and_a_split_are_read(read: Any) -> None:
    samples = read("ids", loaded={"train": None, "test": TABLE}, split="test", rows=2)
    assert sorted(samples.y.tolist()) == [0, 1]


@pytest.mark.parametrize(
    ("x", "more", "code", "told"),
    [
        ("ids", {"loaded": {"train": TABLE, "test": TABLE}}, "split_unknown", "train, test"),
        ("ids", {"split": "test"}, "split_unknown", "no splits"),
        ("nothing", {}, "column_unknown", "ids, ragged"),
        ("ragged", {}, "column_ragged", "'ragged'"),
        ("text", {}, "column_ragged", "'text'"),
    ],
)
def test_what_is_not_there_is_named(read: Any, x: str, more: dict[str, Any], code: str, told: str) -> None:
    with pytest.raises(wsb.BatchError) as caught:
        read(x, **more)
    assert caught.value.code == code
    assert told in caught.value.message


def test_a_folder_that_the_library_refuses_is_named(read: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(wsb.BatchError, match="dataset_invalid"):
        read("ids", loaded=None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(wsb.BatchError) as caught:
        read_dataset(tmp_path, x=["ids"], y="label", pixels=Pixels(), progress=lambda *_: None)
    assert (caught.value.code, caught.value.advice) == ("datasets_missing", "pip install datasets")
