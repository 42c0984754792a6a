"""Confidence limits for the mean of a skewed quantity from its terms (mathematics.md, section 14).

Hall (1992, *On the removal of skewness by transformation*, Journal of the Royal Statistical Society B 54) replaces
Student's T = √n (x̄ − μ)/σ by a monotone cubic polynomial in T whose distribution is normal up to terms of order 1/n.
With skewness γ its inverse is √n G(z/√n):

    G(y) = (3/γ) (∛(1 + γ (y − γ/(6n))) − 1),      G(y) = y  where γ = 0

Being monotone, it gives limits in the order of their confidence at any n; the expansion of Johnson (1978) does not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

FLAT = 1e-12
"""Standard deviation relative to the mean's terms below which all terms count as equal: what is left is rounding."""


@dataclass(frozen=True)
class RowMean:
    """The mean of a quantity over rows, and how its terms scatter."""

    mean: float
    """Σ_s c_s"""
    deviation: float
    """σ of one row's term."""
    skewness: float
    """γ of one row's term; 0 if all are equal."""
    rows: int
    """n"""

    def lower(self, confidence: float, centre: float | None = None) -> float:
        """Compute the lower limit at a two-sided confidence.

        Args:
            confidence: 1 − α; the limit fails with α/2.
            centre: Number that takes the place of the mean; None for the mean.
        """
        return self._moved(normal_quantile(confidence), centre)

    def upper(self, confidence: float, centre: float | None = None) -> float:
        """Compute the upper limit; arguments as for ``lower``."""
        return self._moved(-normal_quantile(confidence), centre)

    def _moved(self, z: float, centre: float | None) -> float:
        step = self.deviation * transformed(z / math.sqrt(self.rows), self.skewness, self.rows)
        return (self.mean if centre is None else centre) - step


def row_mean(terms: NDArray[np.float64], shares: NDArray[np.float64]) -> RowMean:
    """Sum the terms of a weighted mean, and measure how they scatter about it.

    With terms c_s = μ_s r_s, Σ μ_s = 1, the mean is r̄ = Σ c_s. Its fluctuation is that of the mean of the numbers
    n (c_s − μ_s r̄), which are w_s (r_s − r̄)/w̄ for weights w_s.

    Args:
        terms: (N,) c_s.
        shares: (N,) μ_s, each row's share of the divisor, not negative; rows with 0 do not count.
    """
    counted = shares > 0
    rows = int(counted.sum())
    mean = float(terms.sum())
    about = rows * (terms[counted] - shares[counted] * mean)
    deviation = math.sqrt(float(np.square(about).mean()))
    if deviation <= FLAT * rows * float(np.abs(terms).max()):
        return RowMean(mean, 0.0, 0.0, rows)
    # Divided first, so that no cube leaves the range of numbers.
    return RowMean(mean, deviation, float(((about / deviation) ** 3).mean()), rows)


def transformed(y: float, skewness: float, rows: int) -> float:
    """Compute G(y) of Hall's transformation."""
    if not skewness:
        return y
    x = skewness * (y - skewness / (6 * rows))
    # The real cube root, without cancellation where x is small.
    root = math.expm1(math.log1p(x) / 3) if x > -0.5 else float(np.cbrt(1 + x)) - 1
    return 3 / skewness * root


def normal_quantile(confidence: float) -> float:
    """Return z, which a standard normal number exceeds with probability (1 − confidence)/2."""
    return -NormalDist().inv_cdf((1 - confidence) / 2)
