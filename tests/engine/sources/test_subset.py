"""Random subsets: proportions, determinism, and what is refused."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import wsb_engine as wsb
from wsb_engine.sources.subset import allocate, strata_of, stratified

COUNTS = st.lists(st.integers(1, 1000), min_size=1, max_size=12)


@settings(deadline=None)
@given(COUNTS, st.data())
def test_shares_are_within_one_row_of_the_proportions(counts: list[int], data: st.DataObject) -> None:
    total = sum(counts)
    rows = data.draw(st.integers(1, total))
    quotas = allocate(np.array(counts), rows).tolist()
    assert sum(quotas) == rows
    assert all(0 <= quota <= count for quota, count in zip(quotas, counts, strict=True))
    exact = [Fraction(rows * count, total) for count in counts]
    if rows < len(counts) or min(exact) >= 1:
        assert all(math.floor(x) <= quota <= math.ceil(x) for quota, x in zip(quotas, exact, strict=True))
    if rows >= len(counts):
        assert min(quotas) >= 1


@settings(deadline=None)
@given(COUNTS, st.data())
def test_a_larger_class_never_gets_fewer_rows(counts: list[int], data: st.DataObject) -> None:
    rows = data.draw(st.integers(1, sum(counts)))
    shares = sorted(zip(counts, allocate(np.array(counts), rows).tolist(), strict=True))
    distinct = [(a, b) for a, b in pairwise(shares) if a[0] < b[0]]
    assert all(one[1] <= other[1] for one, other in distinct)


def test_a_rare_class_is_kept() -> None:
    y = np.array([0] * 997 + [1, 2, 2])
    assert Counter(y[stratified(y, 10, 0)].tolist()) == {0: 8, 1: 1, 2: 1}


@settings(deadline=None)
@given(COUNTS.map(lambda counts: np.repeat(np.arange(len(counts)), counts)), st.integers(0, 2**64), st.data())
def test_a_subset_has_distinct_rows_in_order(y: np.ndarray, seed: int, data: st.DataObject) -> None:
    rows = data.draw(st.integers(1, len(y)))
    chosen = stratified(y, rows, seed)
    assert len(chosen) == rows
    assert (np.diff(chosen) > 0).all()
    np.testing.assert_array_equal(chosen, stratified(y, rows, seed))


def test_the_rows_of_a_seed_are_the_same_everywhere() -> None:
    y = np.arange(100) % 3
    assert stratified(y, 7, 0).tolist() == [3, 11, 13, 48, 69, 88, 92]
    assert stratified(y, 7, 1).tolist() != stratified(y, 7, 0).tolist()
    assert stratified(y.astype(np.str_), 7, 0).tolist() == stratified(y, 7, 0).tolist()


def test_every_row_is_as_likely_as_the_others_of_its_class() -> None:
    y = np.array([0] * 30 + [1] * 10)
    hits = np.bincount(np.concatenate([stratified(y, 8, seed) for seed in range(2000)]), minlength=40)
    # 2000 draws with probability 1/5: five standard deviations are 89
    assert np.abs(hits - 400).max() < 90


@pytest.mark.parametrize(
    ("y", "expected"),
    [
        ([[2], [0], [1]], [2, 0, 1]),
        ([[0.1, 0.9], [0.8, 0.2]], [1, 0]),
        ([[0, 1, 0], [1, 0, 0]], [1, 0]),
        ([0.2, 0.7], [False, True]),
        ([1.0, 3.0], [1, 3]),
        ([[5, 7], [1, 2]], [0, 0]),
        ([[[1], [2]], [[3], [4]]], [0, 0]),
    ],
)
def test_labels_of_every_kind_have_strata(y: list[object], expected: list[object]) -> None:
    assert strata_of(np.array(y)).tolist() == expected


@pytest.mark.parametrize(
    ("total", "rows", "seed", "code"),
    [(0, None, 0, "empty_batch"), (5, 0, 0, "rows_invalid"), (5, 6, 0, "too_few_rows"), (5, 2, -1, "seed_invalid")],
)
def test_an_impossible_subset_has_its_code(total: int, rows: int | None, seed: int, code: str) -> None:
    with pytest.raises(wsb.BatchError) as caught:
        stratified(np.zeros(total), rows, seed)
    assert caught.value.code == code


def test_a_batch_of_arrays_keeps_inputs_and_labels_together() -> None:
    y = np.arange(50) % 5
    batch = wsb.Batch.from_arrays(
        {"a": np.arange(50.0)[:, None], "b": (np.arange(50) * 2)[:, None]}, y, rows=13, seed=4
    )
    rows = batch.x["a"][:, 0].long().numpy()
    np.testing.assert_array_equal(batch.y, rows % 5)
    np.testing.assert_array_equal(batch.x["b"][:, 0].numpy(), rows * 2)
    assert sorted(Counter(batch.y.tolist()).values()) == [2, 2, 3, 3, 3]


def test_a_batch_of_arrays_of_other_lengths_is_refused() -> None:
    with pytest.raises(wsb.BatchError, match="row_count_mismatch"):
        wsb.Batch.from_arrays(np.eye(4), [0, 1, 2], rows=2)


def test_arrays_on_the_disk_are_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.dat"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    x = np.memmap(path, np.float32, mode="r", shape=(1 << 20, 1 << 18))
    assert len(wsb.Batch.from_arrays(x[:, :3], np.arange(1 << 20) % 2, rows=4)) == 4
