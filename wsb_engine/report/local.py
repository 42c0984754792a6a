"""Where the curvature is: by group of parameters, along the gradient, and in the loss or in the network."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from wsb_engine.report.fields import CertifiedInterval, Count, Interval, Many, Name, Part, Probability, Steps

MAX_SHARES = 10
"""Most layers that are listed by their share of a direction."""


class GroupCurvature(Part):
    """The diagonal block of H that belongs to a group of parameters."""

    name: Name
    """The glob that names the group."""
    parameters: Count
    tensors: Count
    lambda_max: CertifiedInterval | None
    """Null if a limit or rounding leaves nothing to say."""


class ClassCurvature(Part):
    """The Hessian of the mean loss over the labels of one class. Times their weights, those of all classes add to H."""

    index: Count
    """Number of the class, in the order of the logits."""
    label: Name | None
    """What the model calls it; null if it declares no classes."""
    labels: Count
    """Number of labels of this class that have a weight."""
    weight: float
    """Share of the weight of all labels."""
    lambda_max: CertifiedInterval | None
    """Null if a limit or rounding leaves nothing to say."""


class GaussNewton(Part):
    """H = G + (H − G): G = Σ_s w_s J_sᵀ ∇²ℓ_s J_s is the curvature of the loss, the rest that of the network."""

    order: Count
    """Number of samples times that of logits: the rank of G is at most this, and at most the number of parameters."""
    eigenvalues: Many[float] | None
    """The largest eigenvalues of G, descending, as many as its rank can be; not certified. Null if they were too many
    to compute, or the loss is not convex."""
    lambda_max: CertifiedInterval | None
    """λ_max(G); null if a limit or rounding leaves nothing to say."""
    remainder: CertifiedInterval | None
    """‖H − G‖, the largest |λ| of H − G: no eigenvalue of H is farther from that of G of the same rank. Its gap is
    relative to itself; null as above."""


class LayerShare(Part):
    """How much of a unit vector lies in the parameters of a layer."""

    name: Name
    share: float
    """Squared norm of the part in this layer; those of all layers add up to 1."""


Shares = Annotated[list[LayerShare], Field(max_length=MAX_SHARES, fail_fast=True)]


class Eigenvector(Part):
    """A direction of large curvature, as computed."""

    eigenvalue: float
    residual: float
    """‖Hx − θx‖ by a fresh product, without rounding."""
    cosine: float | None
    """|cos| between the gradient and the computed vector; null if the gradient is 0."""
    cosine_error: float | None
    """|cos| between the gradient and the eigenvector itself is no farther from ``cosine`` than this, except with the
    failure probability of ``alignment``; null if the gap to other eigenvalues is not certain, or the gradient is 0."""
    layers: Shares
    """The largest shares by layer, in descending order."""


class NegativeCurvature(Part):
    """A direction in which the loss curves downwards: λ_min is at most its Rayleigh quotient."""

    rayleigh_quotient: Interval
    """xᵀHx of a unit vector x, with rounding."""
    residual: float
    """‖Hx − θx‖ by a fresh product, without rounding."""
    cosine: float | None
    """|cos| between the gradient and x; null if the gradient is 0."""
    layers: Shares
    """The largest shares of x by layer, in descending order."""


class Alignment(Part):
    """How the gradient g lies to directions of curvature."""

    gradient_curvature: Interval | None
    """gᵀHg/gᵀg of the computed gradient, with rounding of H; null if the gradient is 0."""
    subspace_cosine: float | None
    """Cosine of the angle between g and the span of all vectors of ``eigenvectors``; null if the gradient is 0."""
    eigenvectors: Steps[Eigenvector]
    """Of the largest eigenvalues, in descending order."""
    failure_probability: Probability | None
    """Of all ``cosine_error`` together; null if none is certified, or none can fail."""
    negative_curvature: NegativeCurvature | None
    """Along the lowest Ritz vector of the enclosure; null if its Rayleigh quotient is not certainly negative."""
