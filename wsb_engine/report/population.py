"""What one batch tells of λ_max of the distribution that its rows come from."""

from __future__ import annotations

from typing import Literal

from wsb_engine.report.curvature import SampleShare
from wsb_engine.report.fields import Count, Interval, Part, Probability


class RowCurvature(Part):
    """The curvature v·h_s v of the batch's rows along a direction, h_s being the Hessian of row s."""

    mean: float
    """Σ μ_s v·h_s v; μ_s is the row's share of the batch, 1/n without weights."""
    standard_deviation: float
    """Of n μ_s (v·h_s v − mean) over the n rows."""
    skewness: float
    """Of the same; 0 if all rows are equal."""


class Population(Part):
    """A confidence interval for λ_max of E h, the expected Hessian of a row, from one batch of independent rows.

    It is about rows that the parameters do not depend on: for rows of the training it says nothing of the distribution.
    """

    confidence: Probability
    """Probability that the interval covers λ_max, in the limit of many rows; each end fails with half of the rest."""
    kind: Literal["asymptotic"] = "asymptotic"
    """The confidence holds in the limit of many rows, and is not certified for this number of them."""
    lambda_max: Interval
    estimate: float
    """Point estimate in which the first-order biases of the batch's λ_max and of cross-fitting cancel; the interval is
    not centred on it."""
    factor: float | None
    """The batch's λ_max and that of the distribution differ by at most this factor, at the same confidence; null if the
    interval reaches down to 0."""
    rows: Count
    """n: rows with a weight, and with labels that count."""
    rows_for_ten_percent: Count
    """About how many rows would tell λ_max within 10 %."""
    largest_share: SampleShare
    """The row with the largest share of the curvature along the batch's eigenvector."""
    in_sample: RowCurvature
    """Along the eigenvector of the batch's λ_max."""
    cross_fitted: RowCurvature
    """Of each row along the eigenvector of λ_max of the batch without the row's fold."""
    folds: Count
