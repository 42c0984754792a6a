"""The first rows of loaders of every shape that people have."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import wsb_engine as wsb

X = torch.arange(20.0).reshape(10, 2)
Y = torch.arange(10) % 3


@pytest.mark.parametrize("size", [1, 3, 4, 10])
@pytest.mark.parametrize("rows", [1, 4, 7, 10, None])
def test_the_first_rows_of_pairs_are_taken(size: int, rows: int | None) -> None:
    batch = wsb.Batch.from_loader(DataLoader(TensorDataset(X, Y), batch_size=size), rows)
    assert torch.equal(batch.x["x"], X[:rows])
    np.testing.assert_array_equal(batch.y, Y[:rows])


@pytest.mark.parametrize("key", ["labels", "label", "y"])
@pytest.mark.parametrize("kind", [dict, UserDict])
def test_mappings_of_collators_are_read(key: str, kind: Any) -> None:
    ids, mask = torch.arange(20).reshape(10, 2), torch.ones(10, 2, dtype=torch.int64)
    loader = [
        kind({"input_ids": ids[i : i + 4], "attention_mask": mask[i : i + 4], key: Y[i : i + 4]}) for i in (0, 4, 8)
    ]
    batch = wsb.Batch.from_loader(loader, 9)
    assert sorted(batch.x) == ["attention_mask", "input_ids"]
    assert torch.equal(batch.x["input_ids"], ids[:9])
    np.testing.assert_array_equal(batch.y, Y[:9])


def test_a_mapping_of_inputs_with_labels_beside_it_is_read() -> None:
    batch = wsb.Batch.from_loader([({"a": X, "b": X.numpy()}, Y)], 3)
    assert sorted(batch.x) == ["a", "b"]


def test_no_more_batches_are_drawn_than_needed() -> None:
    def endless() -> Iterator[Any]:
        yield X, Y
        raise AssertionError("a batch too many")

    assert len(wsb.Batch.from_loader(endless(), 10)) == 10


def test_gradients_and_the_rest_of_a_batch_are_let_go() -> None:
    x = torch.zeros(1000, 2, requires_grad=True)
    batch = wsb.Batch.from_loader([(x * 1, torch.zeros(1000, dtype=torch.int64))], 2)
    assert not batch.x["x"].requires_grad
    assert batch.x["x"].untyped_storage().nbytes() == 16


@pytest.mark.parametrize(
    ("loader", "rows", "code", "told"),
    [
        ([], 3, "empty_batch", ""),
        ([(X, Y)], 0, "rows_invalid", ""),
        ([(X, Y)], 11, "too_few_rows", "10 rows"),
        ([X], 3, "loader_item_unknown", "batch 0 is a Tensor"),
        ([(X, X, Y)], 3, "loader_item_unknown", "a tuple of 3"),
        (TensorDataset(X, Y), 3, "loader_item_unknown", "DataLoader"),
        ([{"input_ids": X}], 3, "loader_item_unknown", "no labels"),
        ([{"labels": Y}], 3, "loader_item_unknown", "no inputs"),
        ([{"x": X, "label": Y, "y": Y}], 3, "loader_item_unknown", "'y'"),
        ([{"x": X, "text": ["a"] * 10, "y": Y}], 3, "loader_item_unknown", "'text' in batch 0"),
        ([(X, Y[:4])], 3, "loader_item_unknown", "'x' in batch 0"),
        ([(X, Y), (X[:, :1], Y)], 12, "loader_shapes_differ", "[1] in batch 1, [2] in the first"),
        ([{"a": X, "y": Y}, {"b": X, "y": Y}], 12, "loader_item_unknown", "batch 1"),
        ([(X / 0, Y)], 3, "batch_not_finite", ""),
    ],
)
def test_what_is_no_loader_of_samples_is_named(loader: Any, rows: int, code: str, told: str) -> None:
    with pytest.raises(wsb.BatchError) as caught:
        wsb.Batch.from_loader(loader, rows)
    assert caught.value.code == code
    assert told in str(caught.value)


def test_an_endless_loader_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsb_engine.sources.loader.MAX_BYTES", 1000)

    def endless() -> Iterator[Any]:
        while True:
            yield X, Y

    with pytest.raises(wsb.BatchError, match="batch_too_large"):
        wsb.Batch.from_loader(endless())
