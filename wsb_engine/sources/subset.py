"""Random subsets that keep the proportions of the classes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsb_engine.errors import BatchError


def stratified(strata: NDArray[Any], rows: int | None, seed: int) -> NDArray[np.int64]:
    """Return the indices of a random subset that has each stratum in proportion, in ascending order.

    The same arguments give the same rows on every platform: each row draws 64 raw bits of PCG64, whose stream numpy
    guarantees, and a stratum gives the rows with its smallest draws.

    Args:
        strata: Stratum of each row (N,).
        rows: Rows of the subset; None for all.
        seed: Seed of the draws, not negative.

    Raises:
        BatchError: ``empty_batch``, ``rows_invalid``, ``too_few_rows``, ``seed_invalid``.
    """
    total = len(strata)
    if total == 0:
        raise BatchError("the source has no samples", code="empty_batch", advice="Give at least one row.")
    if rows is None:
        return np.arange(total)
    require_rows(total, rows)
    if seed < 0:
        raise BatchError(f"the seed is {seed}", code="seed_invalid", advice="Give a seed of at least 0.")
    _, which, counts = np.unique(strata, return_inverse=True, return_counts=True)
    quotas = allocate(counts, rows)
    order = np.lexsort((np.random.PCG64(seed).random_raw(total), which))
    starts = np.cumsum(counts) - counts
    chosen = [order[start : start + quota] for start, quota in zip(starts, quotas, strict=True)]
    return np.sort(np.concatenate(chosen))


def require_rows(total: int, rows: int) -> None:
    """Raise if a source of that many rows can't give a subset of ``rows``.

    Raises:
        BatchError: ``rows_invalid``, ``too_few_rows``.
    """
    if rows < 1:
        raise BatchError(f"{rows} rows were asked for", code="rows_invalid", advice="Ask for at least one row.")
    if rows > total:
        raise BatchError(
            f"the source has {total:,} rows, and {rows:,} were asked for",
            code="too_few_rows",
            advice="Leave the number of rows out to take all.",
            rows=total,
        )


def allocate(counts: NDArray[np.int64], rows: int) -> NDArray[np.int64]:
    """Share rows among strata by the method of largest remainders.

    Every stratum gets at least one row if there are enough; equal remainders favour the earlier stratum.

    Args:
        counts: Rows of each stratum, all positive.
        rows: Rows to share, at most the sum of the counts.
    """
    quotas = np.zeros_like(counts)
    common = np.ones(len(counts), dtype=bool)
    if rows >= len(counts):
        # Strata whose share is less than one row get one; what is left is shared among the others.
        while (rare := common & (counts * (rows - np.sum(~common)) < np.sum(counts[common]))).any():
            common &= ~rare
        quotas[~common] = 1
    left, total = rows - int(quotas.sum()), int(counts[common].sum())
    shares, remainders = np.divmod(counts[common] * left, total)
    largest = np.argsort(-remainders, kind="stable")[: left - int(shares.sum())]
    shares[largest] += 1
    quotas[common] = shares
    return quotas


def strata_of(y: NDArray[Any]) -> NDArray[Any]:
    """Return a stratum for each row of labels: the class, the likeliest class, or one stratum for all.

    Args:
        y: Labels (N,) or (N, 1), probabilities (N, C) or (N,), or several labels a row (N, …).
    """
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim == 1:
        whole = y.dtype.kind != "f" or bool((y == np.floor(y)).all())
        return y if whole else y >= 0.5
    if y.ndim == 2 and y.shape[1] and (y.dtype.kind == "f" or bool((y.sum(axis=1) == 1).all())):
        return np.asarray(y.argmax(axis=1))
    return np.zeros(len(y), dtype=np.int64)
