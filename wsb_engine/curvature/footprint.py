"""What one more sample costs: bytes of intermediates and operations, counted on two samples and not timed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from wsb_engine.curvature.hessian_product import Objective
from wsb_engine.curvature.plan import TRAFFIC
from wsb_engine.curvature.watching import OperatorWatch

WORKING_SHARE = 0.5
"""Of the memory limit, for the intermediates of one product."""
PRODUCT_OPERATIONS = 2.0
"""A product's operations next to a gradient's: each operation has its own derivative once more."""


@dataclass(frozen=True)
class Footprint:
    """Of one sample."""

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
    return _one_more(objective, objective.logits)


def gradient_footprint(objective: Objective) -> Footprint:
    """Of the loss and its gradient."""
    return _one_more(objective, objective.chunk_gradient)


def _one_more(objective: Objective, function: Callable[[slice], object]) -> Footprint:
    """The difference between three samples and two: what does not depend on their number is left out.

    Of coupled samples, whose number may enter in other ways, each one's share of all.
    """
    samples = len(objective.targets.weights)
    if objective.coupled:
        with _Counter() as counter:
            function(slice(0, samples))
        return Footprint(counter.bytes // samples, counter.operations / samples)
    # Not one sample where there are more: what works on whole batches refuses that for a reason of its own.
    sizes: list[tuple[int, float]] = [(0, 0.0)]
    for count in (2, 3) if samples > 2 else range(1, samples + 1):
        with _Counter() as counter:
            function(slice(0, count))
        sizes.append((counter.bytes, counter.operations))
    return Footprint(max(sizes[-1][0] - sizes[-2][0], 0), max(sizes[-1][1] - sizes[-2][1], 0.0))
