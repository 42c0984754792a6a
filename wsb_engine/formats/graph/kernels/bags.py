"""Embedding bags: rows of a table, added up, averaged or compared in bags of any sizes."""

from __future__ import annotations

import torch
from torch import Tensor

MODES = ("sum", "mean", "max")
"""What becomes of a bag's rows; torch's operator numbers them."""


def embedding_bag(
    table: Tensor,
    indices: Tensor,
    offsets: Tensor,
    mode: str = "mean",
    weights: Tensor | None = None,
    *,
    ends: bool = False,
    padding: int | None = None,
) -> Tensor:
    """Reduce the rows of a table in bags, one after another; empty bags give zeros. As ``torch.embedding_bag``.

    Args:
        table: (rows, D).
        indices: Rows of all bags, (n,).
        offsets: Where in ``indices`` each bag begins, (bags,).
        mode: One of ``MODES``.
        weights: What each row is multiplied with before a sum, (n,).
        ends: True if ``offsets`` has the end of the last bag as well.
        padding: Row that counts in no bag.

    Returns:
        (bags, D).
    """
    count, bags = len(indices), len(offsets)
    # Starts before a place, itself included, number its bag; a bag that begins at the end holds nothing.
    starts = offsets.new_zeros(count + 1).index_add(0, offsets.long(), torch.ones_like(offsets))
    bag = starts[:count].cumsum(0) - 1
    rows = table.index_select(0, indices.long())
    keep = torch.ones_like(indices, dtype=torch.bool) if padding is None else indices != padding % len(table)
    if mode == "max":
        return _largest(rows, bag, keep, bags)[: bags - ends]
    factors = keep.to(table.dtype) if weights is None else keep * weights
    total = rows.new_zeros(bags, rows.shape[1]).index_add(0, bag, rows * factors.unsqueeze(1))
    if mode == "mean":
        sizes = rows.new_zeros(bags).index_add(0, bag, keep.to(table.dtype))
        total = total / sizes.clamp(min=1).unsqueeze(1)
    return total[: bags - ends]


def as_torch(
    table: Tensor,
    indices: Tensor,
    offsets: Tensor,
    mode: int,
    weights: Tensor | None,
    ends: bool,
    padding: int | None,
) -> tuple[Tensor, ...]:
    """Return what torch's own operator does: the bags, and three tensors for its derivative, which are empty here."""
    made = embedding_bag(table, indices, offsets, MODES[mode], weights, ends=ends, padding=padding)
    nothing = indices.new_zeros(0)
    return made, nothing, nothing, nothing


def _largest(rows: Tensor, bag: Tensor, keep: Tensor, bags: int) -> Tensor:
    """Return the largest element of each bag and column: the elements themselves, so that torch can differentiate."""
    count, width = rows.shape
    places = torch.arange(count, device=rows.device).unsqueeze(1).expand(count, width)
    bag = bag.unsqueeze(1).expand(count, width)
    values = torch.where(keep.unsqueeze(1), rows.detach(), -torch.inf)
    largest = values.new_full((bags, width), -torch.inf).scatter_reduce(0, bag, values, "amax")
    hit = keep.unsqueeze(1) & (values == largest.gather(0, bag))
    first = places.new_full((bags, width), count).scatter_reduce(0, bag, torch.where(hit, places, count), "amin")
    return torch.cat([rows, rows.new_zeros(1, width)]).gather(0, first)
