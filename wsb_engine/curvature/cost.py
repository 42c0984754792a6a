"""The cost of one more sample: bytes of intermediates and operations, counted on two samples rather than timed.

If samples depend on each other, as with attention over the batch, the cost per sample may grow with their number; then
the whole batch counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from torch import Tensor

from wsb_engine.curvature.closed_form.layout import TRAFFIC
from wsb_engine.curvature.products.autodiff import Objective, Rows
from wsb_engine.curvature.tracing.dispatch import OperatorWatch
from wsb_engine.internals import flop_registry, tree_leaves

WORKING_SHARE = 0.5
"""Share of the memory limit for the intermediates of one product."""
COUNTED = 16
"""Coupled samples that are counted at a time; the counts at one, two and three times as many are extrapolated."""
PRODUCT_OPERATIONS = 2.0
"""Operations of a product relative to a gradient's: each operation and its derivative."""


@dataclass(frozen=True)
class Footprint:
    """Cost of one sample; for coupled samples, its share of the whole batch."""

    bytes: int
    """Bytes of all intermediates; more than are held at once."""
    operations: float
    """Multiplications and additions of matrix products, plus a charge per number written."""

    def fits(self, memory: int) -> int:
        """Return the number of samples that fit in a memory limit together; at least 1."""
        return max(1, int(memory * WORKING_SHARE) // max(self.bytes, 1))


class _Counter(OperatorWatch):
    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.operations = 0, 0.0

    def ran(self, operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        if operator in flop_registry:
            self.operations += flop_registry[operator](*args, **kwargs, out_val=result)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.bytes += leaf.numel() * leaf.itemsize
                self.operations += TRAFFIC * leaf.numel()


def logits_footprint(objective: Objective) -> Footprint:
    """Return the footprint of the logits alone."""
    return _footprint(objective, objective.logits)


def gradient_footprint(objective: Objective) -> Footprint:
    """Return the footprint of the loss and its gradient."""
    return _footprint(objective, objective.chunk_gradient)


def _footprint(objective: Objective, function: Callable[[Rows], object]) -> Footprint:
    def count(samples: int) -> tuple[int, float]:
        rows = torch.arange(samples) % objective.samples
        with _Counter() as counter:
            function(rows)
        return counter.bytes, counter.operations

    return (_share if objective.coupled else _one_more)(count, objective.samples)


def _one_more(count: Callable[[int], tuple[int, float]], samples: int) -> Footprint:
    """Return the difference between three samples and two, which excludes costs independent of their number."""
    # Not one sample if there are more: operators on whole batches may refuse a single one.
    fewer, more = (count(2), count(3)) if samples > 1 else ((0, 0.0), count(1))
    return Footprint(max(more[0] - fewer[0], 0), max(more[1] - fewer[1], 0.0))


def _share(count: Callable[[int], tuple[int, float]], samples: int) -> Footprint:
    """Return one sample's share of the whole batch, extrapolated quadratically from a few samples."""
    counts = [count(samples)] if samples <= 3 * COUNTED else [count(times * COUNTED) for times in (1, 2, 3)]
    sizes, operations = zip(*counts, strict=True)
    x = samples / COUNTED
    return Footprint(ceil(_continued(sizes, x) / samples), _continued(operations, x) / samples)


def _continued(values: Sequence[float], x: float) -> float:
    """Evaluate at x > 3 the parabola through ``values`` at 1, 2, 3; a line if concave, a constant for one value."""
    if len(values) == 1:
        return values[0]
    first, second, third = values
    bend = max(third - 2 * second + first, 0)
    return third + (third - second) * (x - 3) + bend * (x - 3) * (x - 2) / 2
