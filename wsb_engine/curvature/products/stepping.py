"""Products that continue with less memory when it runs out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from wsb_engine import devices
from wsb_engine.curvature.products.autodiff import HessianProduct, interrupted
from wsb_engine.curvature.products.linearized import NotLinearizableError
from wsb_engine.errors import ModelError, ResourceError, first_line
from wsb_engine.memory import ran_out


def not_differentiable(error: BaseException) -> ModelError:
    """Convert torch's error about an operator that it can't differentiate into one with a code."""
    return ModelError(
        f"torch can't derive the logits twice: {first_line(error)}",
        code="not_differentiable",
        advice="Replace the operator that it names by others, or export the model to ONNX and analyse that file.",
    )


class SteppingProduct(HessianProduct):
    """A product that switches to the next smaller method when it runs out of memory, and keeps it.

    After the last method, blocks of columns are halved.

    Args:
        way: First method to try.
        warn: Called with a code and a message after a switch.
        count: Called with the number of columns of each product.
        least: Bytes that the smallest product takes, as far as they are known.
    """

    def __init__(
        self,
        way: HessianProduct,
        warn: Callable[[str, str], None],
        count: Callable[[int], None] = lambda _: None,
        least: int = 0,
    ) -> None:
        super().__init__(way.objective, way.columns)
        self.way, self._warn, self._count, self._least = way, warn, count, least
        self._batched = True
        """False once an operator could not be batched over columns."""
        self._short = False
        """True if memory has run out since the last successful product."""

    @property
    def description(self) -> str:
        return self.way.description

    def __call__(self, V: Tensor) -> Tensor:
        """H·V, (P, m) float64.

        Raises:
            ResourceError: ``out_of_memory`` if the smallest method does not fit either.
        """
        while True:
            if not self._batched and V.shape[1] > 1:
                return torch.cat([self(column) for column in V.split(1, dim=1)], dim=1)
            image = self._attempt(V)
            if image is not None:
                if self._short:
                    self._warn("memory_step_down", f"memory ran out: products go on with {self.way.description}")
                    self._short = False
                self._count(V.shape[1])
                return image
            if not self._batched and V.shape[1] > 1:
                continue
            devices.release(V.device)
            smaller = self.way.smaller()
            if smaller is None:
                return self._halved(V)
            self.way = smaller

    def _attempt(self, V: Tensor) -> Tensor | None:
        """Return the product or None; a failed attempt has released its memory on return."""
        try:
            return self.way(V)
        except NotLinearizableError as error:
            self._short = self._short or ran_out(error.__cause__)
        except (MemoryError, RuntimeError) as error:
            if interrupted(error):
                raise
            if ran_out(error):
                self._short = True
            elif V.shape[1] > 1:  # an operator that vmap can't batch may still be differentiable
                self._batched = False
            else:
                raise not_differentiable(error) from error
        return None

    def _halved(self, V: Tensor) -> Tensor:
        if V.shape[1] == 1:
            few = "all samples, which depend on each other," if self.objective.coupled else "one sample at a time"
            raise ResourceError(
                f"a Hessian-vector product of {few} does not fit in memory: it takes at least {self._least:.2g} bytes",
                code="out_of_memory",
                advice="Give the analysis more memory than that, or select fewer parameters.",
                needed=self._least,
            )
        middle = V.shape[1] // 2
        self.columns = min(self.columns, middle)
        return torch.cat([self(V[:, :middle]), self(V[:, middle:])], dim=1)
