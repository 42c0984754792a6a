"""Products with D (H + μI) D for a diagonal D (mathematics.md, section 13)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from wsb_engine.curvature.products.autodiff import HessianProduct

NARROW = 2.0**-300
"""Entries of D from this on, relative to the largest, have squares that no other factor carries out of the range."""
LEAST_EXPONENT = -1000
"""Exponents of the largest entry of D below this count as this, so that powers of two stay within the range."""


@dataclass(frozen=True)
class Diagonal:
    """D = 2^exponent · diag(s), the shift μ, and how exact s is.

    A common power of two is kept apart, so that products with squares of s stay within the range of numbers.
    """

    s: Tensor
    """(P,) float64, not negative; the largest entry lies in [1, 2) unless all are 0 or below 2^-1000."""
    exponent: int = 0
    error: float = 0.0
    """Bound on the relative error of each entry."""
    shift: float = 0.0
    """μ, in the units of the products' H."""

    @classmethod
    def of(cls, sizes: Tensor, *, error: float = 0.0, shift: float = 0.0) -> Diagonal:
        """Take the common power of two out of the entries.

        Args:
            sizes: (P,) float64, finite and not negative.
            error: Bound on the relative error of each entry.
            shift: μ, in the units of the products' H.
        """
        largest = float(sizes.amax())
        exponent = max(math.frexp(largest)[1] - 1, LEAST_EXPONENT) if largest else 0
        # In two steps, since the power of two may leave the range of numbers by itself.
        half = -exponent // 2
        return cls(sizes * 2.0**half * 2.0 ** (-exponent - half), exponent, error, shift)

    @property
    def is_wide(self) -> bool:
        """True if squares of entries, multiplied by those of large numbers, may leave the range of numbers."""
        return bool(((self.s > 0) & (self.s < NARROW)).any())

    @property
    def has_zeros(self) -> bool:
        """True if an entry is 0, which adds an eigenvalue 0."""
        return bool((self.s == 0).any())


class ScaledProduct(HessianProduct):
    """s ⊙ H(s ⊙ V) + μ s² ⊙ V; counts as the product with H that it rests on.

    Args:
        product: Multiplies by H.
        diagonal: s and μ; its exponent stays aside.
    """

    def __init__(self, product: HessianProduct, diagonal: Diagonal) -> None:
        super().__init__(product.objective, product.columns)
        self.product, self._diagonal = product, diagonal
        self._s = diagonal.s.to(self.device).unsqueeze(1)

    def __call__(self, V: Tensor) -> Tensor:
        image = self.product((V * self._s).to(self.dtype)).mul_(self._s)
        if self._diagonal.shift:
            image.add_(self._s.square() * V, alpha=self._diagonal.shift)
        return image

    @property
    def description(self) -> str:
        return self.product.description
