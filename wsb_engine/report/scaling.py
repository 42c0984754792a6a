"""Sharpness in the units of the parameters, and in those of an optimizer's steps."""

from __future__ import annotations

from typing import Literal

from wsb_engine.optimizer import OptimizerKind
from wsb_engine.report.curvature import Moments, Rounding, StoppedBy
from wsb_engine.report.fields import CertifiedInterval, Count, Few, Interval, Name, Part


class Scaled(Part):
    """λ_max of D H D, where the diagonal matrix D measures each parameter by the size of its group."""

    scaling: Literal["elementwise", "tensor", "filter"]
    lambda_max: CertifiedInterval
    hessian_vector_products: Count
    stopped_by: StoppedBy | None
    """As of the enclosure."""
    rounding: Rounding | None
    """As of the enclosure, in the units of D H D."""
    moments: Moments | None
    """tr DHD and ‖DHD‖_F², exact by the closed form of MLPs; null if there is none or it would take too long."""
    wolkowicz_styan: Interval | None
    """The bound on λ_max from these moments; null without them."""


class OptimizerSettings(Part):
    """Settings by torch's names, as given or by default; those that the kind lacks have their defaults."""

    momentum: float
    dampening: float
    nesterov: bool
    weight_decay: float
    betas: Few[float]
    eps: float
    amsgrad: bool
    momentum_decay: float


class StableSteps(Part):
    """The learning rates at which an optimizer's full-batch steps are stable on the quadratic model."""

    kind: OptimizerKind
    settings: OptimizerSettings
    learning_rate: float | None
    """The optimizer's, or else the option ``learning_rate``; null if neither was given."""
    limit: float
    """Value of η·λ at which a direction of curvature λ begins to diverge; of adamw, without its weight decay."""
    lambda_max: CertifiedInterval
    """λ_max of P^(−½) (H + μI) P^(−½), where P scales the steps and μ is a weight decay that is added to the
    gradient."""
    largest_stable_learning_rate: Interval | None
    """No direction of positive curvature diverges up to the lower end, and one diverges beyond the upper end, which is
    the largest number of all if no direction may limit the rate. Null if none does: λ_max is 0 or less, and adamw's
    decay does not limit it either."""
    ratio: Interval | None
    """The learning rate over the largest stable one: steps are stable below 1. Null without either."""
    step: Count | None = None
    """Number of steps that the optimizer had taken; null without a state or if its tensors differ."""
    state_sha256: Name | None = None
    """Hex digest of the state's file; null if there was none."""
    hessian_vector_products: Count | None = None
    """Null if λ_max follows from the enclosure."""
    stopped_by: StoppedBy | None = None
    rounding: Rounding | None = None
