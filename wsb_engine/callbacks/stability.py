"""How close gradient descent is to the edge of stability, from λ_max and an optimizer's real settings.

On a quadratic with curvature λ, θ ← θ − v with v ← βv + ηλθ converges for λ < 2(1+β)/η, and with Nesterov's momentum
for λ < 2(1+β)/((1+2β)η) (Cohen et al., arXiv 2103.00065, section 2 and appendix B). The ratio is λ over this limit.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer


class NoRatioError(Exception):
    """There is no stability ratio; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Descent:
    """Gradient descent, as one group of parameters takes it."""

    group: int
    """Number of the group in its optimizer."""
    learning_rate: float
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    decoupled: bool = False
    """True if weights decay apart from the gradient: θ ← (1 − ηw)θ. False if w·θ is added to the gradient."""

    def ratio(self, curvature: float) -> float:
        """Return λ over the largest stable λ: descent diverges along an eigenvector of λ where it exceeds 1."""
        beta = self.momentum
        # The first step aside, dampening scales every gradient.
        rate = self.learning_rate * (1 - self.dampening if beta else 1.0)
        rate *= (1 + 2 * beta if self.nesterov else 1.0) / (1 + beta)
        if self.decoupled:
            return (rate * curvature + self.learning_rate * self.weight_decay) / 2
        return rate * (curvature + self.weight_decay) / 2


def largest(descents: Sequence[Descent], curvature: float) -> tuple[float, Descent]:
    """Return the largest ratio of several groups, and the group.

    With the same momentum in all of them, it bounds the ratio of the steps that they take together: H ≤ λ_max·I, so
    η^½(H + W)η^½ ≤ η(λ_max·I + W), where η and W are diagonal.
    """
    return max(((each.ratio(curvature), each) for each in descents), key=lambda pair: pair[0])


def of_torch(optimizer: Optimizer | Iterable[Optimizer], module: nn.Module) -> list[Descent]:
    """Read the settings of the groups that update parameters of a module, as they are now.

    Args:
        optimizer: One of torch, or several; wrappers that keep theirs as ``optimizer`` are looked into.
        module: The module that is trained.

    Raises:
        NoRatioError: if an optimizer is not gradient descent, or updates nothing of the module.
    """
    own = {id(parameter) for parameter in module.parameters()}
    descents: list[Descent] = []
    for each in [optimizer] if hasattr(optimizer, "param_groups") else optimizer:
        inner: Any = getattr(each, "optimizer", each)
        for number, group in enumerate(inner.param_groups):
            if any(id(parameter) in own for parameter in group["params"]):
                descents.append(_descent(inner, number, group))
    if not descents:
        raise NoRatioError("the optimizer updates no parameter of the module")
    return descents


def _descent(optimizer: Any, number: int, group: dict[str, Any]) -> Descent:
    # A subclass may step otherwise.
    if inspect.unwrap(type(optimizer).step) is not inspect.unwrap(torch.optim.SGD.step):
        raise not_descent(type(optimizer).__name__)
    if group["maximize"]:
        raise NoRatioError("the optimizer maximizes")
    return Descent(
        group=number,
        learning_rate=float(group["lr"]),
        momentum=float(group["momentum"]),
        dampening=float(group["dampening"]),
        nesterov=bool(group["nesterov"]),
        weight_decay=float(group["weight_decay"]),
    )


def not_descent(name: str) -> NoRatioError:
    """Return the error for an optimizer that scales steps by more than a learning rate."""
    return NoRatioError(f"{name} is not gradient descent with momentum, so λ_max alone does not say where it is stable")
