"""Hessian-vector products of any logits from a linearised gradient: the primal pass is paid once and kept.

Tracing takes about as long for any size, and the intermediates of all samples stay in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.func import grad

from wsb_engine.curvature.products.autodiff import (
    FORWARD_MODE,
    GRADIENT_SAMPLES,
    AutodiffProduct,
    Chunk,
    HessianProduct,
    Objective,
    interrupted,
)
from wsb_engine.curvature.threads import Threads
from wsb_engine.curvature.tracing.linearize import Product, linearize

WORTHWHILE = 64 << 20
"""Bytes of intermediates of one gradient below which products from scratch stay in the caches."""
PRODUCT_GRADIENTS = 2.0
"""Time of a linearised product relative to a gradient's."""
TRACING_SECONDS = 1e-3
"""Seconds of tracing for each operator of the gradient."""
SAVED_SECONDS, SAVED_SECONDS_REVERSE = 4e-5, 2.5e-5
"""Seconds by which a linearised product calls faster than one from scratch in forward or in reverse mode, for each
operator of the gradient, besides its work."""
CALLING_SECONDS = 1.5e-4
"""Seconds by which differentiating in forward mode takes longer for each operator of the gradient, besides its work."""

REVERSE_GRADIENTS = 2.0
"""Calls take so many times as long as the work of a gradient where products in reverse mode are surely faster: the
second derivatives of convolutions are slower in that mode."""


def pays(gradient_seconds: float, operators: int, products: int, *, reverse: bool) -> bool:
    """Return whether tracing takes less time than it saves.

    A product from scratch repeats the gradient; a trace runs two more gradients and two more products, and costs time
    for each operator.

    Args:
        gradient_seconds: Time of a gradient of all samples.
        operators: Operators of a gradient of one chunk.
        products: Products that follow.
        reverse: True if products from scratch are in reverse mode.
    """
    calling = (SAVED_SECONDS_REVERSE if reverse else SAVED_SECONDS) * operators
    spent = 2 * (1 + PRODUCT_GRADIENTS) * gradient_seconds + TRACING_SECONDS * operators
    return products * (gradient_seconds + calling) >= spent


def calls_dominate(gradient_seconds: float, operators: int) -> bool:
    """Return whether calling the operators of a gradient in forward mode takes far longer than their work.

    Args:
        gradient_seconds: Time of a gradient of one chunk, at the nominal rate.
        operators: Its operators.
    """
    return CALLING_SECONDS * operators > REVERSE_GRADIENTS * gradient_seconds


class NotLinearizableError(Exception):
    """torch can't linearise this gradient, for the reason in ``__cause__``; products from scratch may still work."""


class LinearizedProduct(HessianProduct):
    """H·V one column after another; exact, as the derivative of the gradient at the same point.

    Args:
        objective: The loss.
        columns: Columns to multiply at a time.
        samples: Number of samples in a chunk; the first chunk is traced.
        threads: Number of threads; each multiplies its own chunks.
    """

    def __init__(
        self, objective: Objective, columns: int = 1, samples: int = GRADIENT_SAMPLES, *, threads: int = 1
    ) -> None:
        super().__init__(objective, columns)
        self.samples = samples
        self._threads = Threads(threads)
        self._parts: list[Product] | None = None

    @property
    def description(self) -> str:
        return "a gradient that was linearised once"

    def smaller(self) -> HessianProduct:
        return AutodiffProduct(self.objective, self.columns)

    def __call__(self, V: Tensor) -> Tensor:
        """H·V, (P, m) float64.

        Raises:
            NotLinearizableError: if tracing fails.
        """
        if self._parts is None:
            self._parts = self._linearized()
        if V.shape[1] == 1:  # not copied: threads of the copy would compete with those of the next product
            return self._column(V.squeeze(1), self._parts).unsqueeze(1)
        return torch.stack([self._column(v, self._parts) for v in V.unbind(1)], dim=1)

    def _column(self, v: Tensor, parts: Sequence[Product]) -> Tensor:
        # Copied: products with strided kernels run at half the speed.
        direction = self.objective.unflatten(v.contiguous())
        return self._threads.sum(
            lambda part: self.objective.flatten(part(direction)), parts, check=self.objective.pause
        )

    def _linearized(self) -> list[Product]:
        traces: dict[int, Callable[[Chunk], Product]] = {}
        # Outside the try of _part, because a pause between chunks may raise any error too.
        return [self._part(self.objective.chunk(rows), traces) for rows in self.objective.chunks(self.samples)]

    def _part(self, chunk: Chunk, traces: dict[int, Callable[[Chunk], Product]]) -> Product:
        """Return the linearised gradient of a chunk; ``traces`` holds the traces by number of samples."""
        objective, size = self.objective, len(chunk.y)
        try:
            if size not in traces:
                with FORWARD_MODE:
                    gradient = grad(objective.value)
                    traces[size] = linearize(gradient, dict(objective.selected), chunk, check=objective.pause)
            return traces[size](chunk)
        except Exception as error:  # tracing fails with errors of any kind
            if interrupted(error):
                raise
            raise NotLinearizableError(str(error)) from error
