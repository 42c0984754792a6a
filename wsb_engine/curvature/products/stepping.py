"""Products that continue with less memory when it runs out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

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
    """

    def __init__(self, way: HessianProduct, warn: Callable[[str, str], None]) -> None:
        super().__init__(way.objective, way.columns)
        self.way, self._warn = way, warn
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
                return image
            if not self._batched and V.shape[1] > 1:
                continue
            if V.is_cuda:
                torch.cuda.empty_cache()
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
                f"a Hessian-vector product of {few} does not fit in memory",
                code="out_of_memory",
                advice="Give the analysis more memory, or select fewer parameters.",
            )
        middle = V.shape[1] // 2
        self.columns = min(self.columns, middle)
        return torch.cat([self(V[:, :middle]), self(V[:, middle:])], dim=1)
