"""What one more sample costs: bytes of intermediates and operations, counted on two samples and not timed.

Samples that depend on each other may cost more the more there are, as attention over the batch does: then the whole
batch is what counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from torch import Tensor

from wsb_engine.curvature.closed_form.plan import TRAFFIC
from wsb_engine.curvature.products.autodiff import Objective, Rows
from wsb_engine.curvature.tracing.dispatch import OperatorWatch
from wsb_engine.internals import flop_registry, tree_leaves

WORKING_SHARE = 0.5
"""Of the memory limit, for the intermediates of one product."""
COUNTED = 16
"""Coupled samples that are counted at a time: growth over the next two times as many tells that of the batch."""
PRODUCT_OPERATIONS = 2.0
"""A product's operations next to a gradient's: each operation has its own derivative once more."""


@dataclass(frozen=True)
class Footprint:
    """Of one sample; of coupled samples, its part of the whole batch."""

    bytes: int
    """Of everything that is made on the way; more than is held at once."""
    operations: float
    """Multiplications and additions of matrix products, and a charge for each number made."""

    def fits(self, memory: int) -> int:
        """Samples that work side by side in a memory limit; at least 1."""
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
    """Of the logits alone."""
    return _footprint(objective, objective.logits)


def gradient_footprint(objective: Objective) -> Footprint:
    """Of the loss and its gradient."""
    return _footprint(objective, objective.chunk_gradient)


def _footprint(objective: Objective, function: Callable[[Rows], object]) -> Footprint:
    def count(samples: int) -> tuple[int, float]:
        rows = torch.arange(samples) % objective.samples
        with _Counter() as counter:
            function(rows)
        return counter.bytes, counter.operations

    return (_share if objective.coupled else _one_more)(count, objective.samples)


def _one_more(count: Callable[[int], tuple[int, float]], samples: int) -> Footprint:
    """The difference between three samples and two: what does not depend on their number is left out."""
    # Not one sample where there are more: what works on whole batches may refuse that.
    fewer, more = (count(2), count(3)) if samples > 1 else ((0, 0.0), count(1))
    return Footprint(max(more[0] - fewer[0], 0), max(more[1] - fewer[1], 0.0))


def _share(count: Callable[[int], tuple[int, float]], samples: int) -> Footprint:
    """One sample's part of the whole batch, whose size is continued quadratically from a few samples."""
    counts = [count(samples)] if samples <= 3 * COUNTED else [count(times * COUNTED) for times in (1, 2, 3)]
    sizes, operations = zip(*counts, strict=True)
    x = samples / COUNTED
    return Footprint(ceil(_continued(sizes, x) / samples), _continued(operations, x) / samples)


def _continued(values: Sequence[float], x: float) -> float:
    """The parabola through ``values`` at 1, 2, 3, or a line where it would bend down, at x > 3; a sole value itself."""
    if len(values) == 1:
        return values[0]
    first, second, third = values
    bend = max(third - 2 * second + first, 0)
    return third + (third - second) * (x - 3) + bend * (x - 3) * (x - 2) / 2
