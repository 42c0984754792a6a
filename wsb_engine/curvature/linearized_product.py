"""Hessian-vector products of any logits from a linearised gradient: the primal pass is paid once and kept.

Tracing takes about a second whatever the size, and the intermediates of all samples stay in memory; a footprint,
counted on two samples, decides whether that is worth it and fits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, linearize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from wsb_engine.classifier import Tensors
from wsb_engine.curvature.hessian_product import AutodiffProduct, HessianProduct, Objective

WORTHWHILE = 64 << 20
"""Bytes of intermediates of one gradient from which on tracing pays off within a few dozen products."""
CACHE_SHARE = 0.5
"""Of the memory limit, for the intermediates that are kept."""


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        self.bytes += sum(leaf.numel() * leaf.itemsize for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        return result


def footprint(objective: Objective) -> int:
    """Bytes of everything that one gradient of the whole batch makes on its way; what doesn't depend on the number
    of samples is left out."""
    sizes: list[int] = []
    for rows in (1, 2):
        with _Counter() as counter:
            grad(objective.chunk_loss(slice(0, rows)))(dict(objective.selected))
        sizes.append(int(counter.bytes))
    return max(sizes[1] - sizes[0], 0) * len(objective.targets.weights)


class LinearizedProduct(HessianProduct):
    """H·V one column after another; exact, as the derivative of the gradient at the same point."""

    def __init__(self, objective: Objective) -> None:
        super().__init__(objective, columns=1)
        self._parts: list[Callable[[Tensors], Tensors]] | None = None

    def __call__(self, V: Tensor) -> Tensor:
        if self._parts is None:
            point = dict(self._objective.selected)
            self._parts = [
                linearize(grad(self._objective.chunk_loss(rows)), point)[1] for rows in self._objective.chunks()
            ]
        total = torch.zeros(V.shape, dtype=torch.float64, device=V.device)
        for column in range(V.shape[1]):
            direction = self._objective.unflatten(V[:, column])
            for part in self._parts:
                total[:, column] += self._objective.flatten(part(direction))
        return total


def single_product(objective: Objective, *, memory: int) -> HessianProduct:
    """The product for many single vectors: linearised where that is worth its setup and fits, else from scratch."""
    samples = len(objective.targets.weights)
    if samples > 1 and WORTHWHILE <= footprint(objective) <= memory * CACHE_SHARE:
        return LinearizedProduct(objective)
    return AutodiffProduct(objective, columns=1)
