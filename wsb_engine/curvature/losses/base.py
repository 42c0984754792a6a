"""What the engine knows of a loss ℓ(z, y): values, derivatives at logits, targets, accuracy, and rounding.

L(θ) = Σ_s w_s ℓ(z_s, y_s) with Σ_s w_s = 1. Whatever the dtype of the logits, a loss works in float64.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from wsb_engine.errors import BatchError
from wsb_engine.options import LossKind

LARGEST_EXPONENT = 600
"""Largest exponent of the power of two that brings a batch's derivatives near 1; it also multiplies squares of inputs.
"""
BLOCK = 1 << 20
"""Most logits whose losses are computed at a time; derivatives hold about ten arrays of their size."""
UNIT = 2.0**-53
ELEMENTARY = 8.0
"""Units of rounding of an elementary function."""


@dataclass(frozen=True)
class Targets:
    """What the logits are compared with, and the weights of the samples."""

    y: Tensor
    """(N, …) float64, a row for each sample, from ``Loss.targets``."""
    weights: Tensor
    """(N,) float64, non-negative, of sum 1."""


@dataclass(frozen=True)
class LossRounding:
    """Bounds on the rounding errors of the derivatives of B samples, where ∇²ℓ = s S; all float64."""

    gradient: Tensor
    """(B, C): |g_kept − g| is not above this."""
    curvature: Tensor
    """(B,): relative error of the entries of S."""
    total: Tensor
    """(B,): upper bound on s."""
    norm: Callable[[Tensor, Tensor], Tensor]
    """(X, Y) ↦ (B,) bound on ‖Aᵀ |S| B‖_F for A and B whose rows have norms X and Y, (B, C) each."""


class LossDerivatives(ABC):
    """g = ∂ℓ/∂z and ∇²ℓ = ∂²ℓ/∂z² of B samples at their logits; all float64."""

    gradient: Tensor
    """g, (B, C)"""

    @property
    @abstractmethod
    def diagonal(self) -> Tensor:
        """The diagonal of ∇²ℓ, (B, C)."""

    @abstractmethod
    def curvature(self) -> Tensor:
        """Return ∇²ℓ, (B, C, C)."""

    @abstractmethod
    def factor(self) -> Tensor:
        """Return F with FᵀF = ∇²ℓ, (B, C, C), if the loss is convex."""

    @abstractmethod
    def factor_times(self, W: Tensor) -> Tensor:
        """Return F W, (B, C, d), for W (C, d) float64; differentiable in W, with F held fixed."""

    @abstractmethod
    def column_product(self, scale: float) -> Callable[[Tensor], Tensor]:
        """Return r ↦ scale · ∇²ℓ r for blocks r of m columns, (C, m, B) float64, which may be overwritten."""

    def rounding(self, z: Tensor, y: Tensor, radius: Tensor) -> LossRounding | None:
        """Bound what rounding did to these derivatives; None, the default, if no bound is known.

        Args:
            z: (B, C) logits.
            y: Targets of the same samples.
            radius: (B, C), a bound on the error of z.
        """
        return None


@dataclass(frozen=True)
class ElementwiseDerivatives(LossDerivatives):
    """Derivatives of a loss that is a sum over logits, so that ∇²ℓ is diagonal; (B, C) float64 each."""

    gradient: Tensor
    second: Tensor
    """∂²ℓ/∂z_j²"""

    @property
    def diagonal(self) -> Tensor:
        return self.second

    def curvature(self) -> Tensor:
        return torch.diag_embed(self.second)

    def factor(self) -> Tensor:
        return torch.diag_embed(self.second.sqrt())

    def factor_times(self, W: Tensor) -> Tensor:
        return self.second.sqrt().unsqueeze(2) * W

    def column_product(self, scale: float) -> Callable[[Tensor], Tensor]:
        second = across(scale * self.second)
        return lambda r: r.mul_(second)


class Loss(ABC):
    """A loss that is twice differentiable in the logits."""

    kind: ClassVar[LossKind]
    """As the report states it."""
    convex: ClassVar[bool] = True
    """True if no ∇²ℓ has a negative eigenvalue, so that it has a factor."""

    @abstractmethod
    def values(self, z: Tensor, y: Tensor) -> Tensor:
        """Return ℓ of each sample, (N,) float64; its automatic derivatives of every order must not cancel.

        Args:
            z: (N, C) logits.
            y: (N, …) targets.
        """

    @abstractmethod
    def derivatives(self, z: Tensor, y: Tensor) -> LossDerivatives:
        """Return the derivatives at logits z (B, C) and targets y (B, …); differentiable once in z."""

    @abstractmethod
    def correct(self, z: Tensor, y: Tensor) -> Tensor | None:
        """Return (N,) True where the prediction is the label's; None if the loss predicts no classes."""

    @abstractmethod
    def classes(self, logits: int) -> int:
        """Return the number of classes that integer labels count."""

    @abstractmethod
    def targets(self, y: Tensor, logits: int) -> Tensor:
        """Return labels as the rows that logits are compared with, (N, …) float64.

        Args:
            y: (N,) class indices below ``classes``, or floating (N,) or (N, K).
            logits: C.

        Raises:
            BatchError: ``label_classes_mismatch``.
        """

    def accuracy(self, z: Tensor, targets: Targets) -> float | None:
        """Return the weighted share of correct samples; None if the loss predicts no classes."""
        correct = [self.correct(*rows) for rows in in_blocks(z, targets.y)]
        found = [each for each in correct if each is not None]
        return float((torch.cat(found).double() * targets.weights).sum()) if found else None

    def scale(self, z: Tensor, targets: Targets) -> float:
        """Return a power of four that brings the largest |g| or diagonal entry of ∇²ℓ near 1; 1 if all are 0.

        Args:
            z: (N, C) logits.
            targets: Targets on the same device.
        """
        found = (self.derivatives(*rows) for rows in in_blocks(z, targets.y))
        sizes = torch.cat([torch.maximum(at.gradient.abs(), at.diagonal.abs()).amax(dim=1) for at in found])
        return power_of_four(float(torch.where(targets.weights > 0, sizes, 0.0).max()))

    def least_curvature(self, z: Tensor, targets: Targets) -> float:
        """Return the smallest over samples of their largest diagonal entry of ∇²ℓ.

        If it is small, H may be smaller than gradients let expect.
        """
        blocks = in_blocks(z, targets.y)
        largest = torch.cat([self.derivatives(*rows).diagonal.abs().amax(dim=1) for rows in blocks])
        return float(torch.where(targets.weights > 0, largest, 1.0).min())


def in_blocks(z: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield rows of logits and targets, as many at a time as losses work on in little memory."""
    rows = max(1, BLOCK // z.shape[1])
    return zip(z.split(rows), y.split(rows), strict=True)


def power_of_four(size: float) -> float:
    """Return one that brings a size near 1; 1 if it is 0."""
    if not size:
        return 1.0
    exponent = max(min(-math.frexp(size)[1], LARGEST_EXPONENT), -LARGEST_EXPONENT)
    return math.ldexp(1.0, exponent - exponent % 2)


def across(tensor: Tensor) -> Tensor:
    """Return (B, C) as (C, 1, B), to meet columns (C, m, B)."""
    return tensor.T.unsqueeze(1).contiguous()


def of_product(relative: Tensor) -> Tensor:
    """Return the relative error of a product of two numbers with this one each, rounded."""
    return 2 * relative + relative.square() + 4 * UNIT


def mismatched(columns: int, classes: int) -> BatchError:
    """Return the error of labels with another number of columns than there are classes."""
    return BatchError(
        f"y has {columns} columns, the model has {classes} classes",
        code="label_classes_mismatch",
        advice="Give one probability for each class, in the order of the logits.",
        expected=classes,
        actual=columns,
    )
