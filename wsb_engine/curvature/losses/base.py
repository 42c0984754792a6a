"""What the engine knows of a loss ℓ(z, y): values, derivatives at logits, targets, accuracy, and rounding.

L(θ) = Σ_s w_s ℓ(z_s, y_s) with Σ_s w_s = 1. Whatever the dtype of the logits, a loss works in float64.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from wsb_engine.errors import BatchError
from wsb_engine.model import Form
from wsb_engine.options import LossKind, Options

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
    """What the logits are compared with, and the weights of the samples.

    Labels stay as they are stored, since a row of C numbers for each of N samples may not fit in memory.
    """

    y: Tensor
    """(N,) class indices, (N, T) with −1 where a label does not count, or floating (N,) or (N, K)."""
    weights: Tensor
    """(N,) float64, non-negative, of sum 1; equal weights are one number, expanded."""
    as_rows: Callable[[Tensor], Tensor] = Tensor.double
    """Converts labels of some samples to rows, as ``Loss.targets``; by default, labels are rows."""
    ignored: int = 0
    """Number of labels that do not count."""
    ignore_index: int | None = None
    """The label that does not count; None if there is none."""

    def rows(self, rows: slice | Tensor) -> Tensor:
        """Return what the logits of some samples are compared with, (B, …) float64."""
        return self.as_rows(self.y[rows])

    def part(self, rows: slice, device: torch.device) -> Targets:
        """Return the targets of some samples on a device, each with the weight that it has in the whole."""
        return replace(self, y=self.y[rows].to(device), weights=self.weights[rows].to(device))


class Compared(NamedTuple):
    """Logits of some samples, what they are compared with, and the weights, on one device."""

    z: Tensor
    """(B, C)"""
    y: Tensor
    """(B, …) float64"""
    weights: Tensor
    """(B,) float64"""
    labels: Tensor
    """The labels as ``Targets.y`` has them."""


@dataclass(frozen=True)
class Output:
    """The shape of what a model gives for one sample, and of the sample's labels."""

    sizes: tuple[int, ...]
    """Without the axis of samples; logits are these flattened."""
    axis: int = -1
    """Axis of ``sizes`` with the classes."""
    positions: int = 1
    """Number of labels of a sample if they are classes."""


@dataclass(frozen=True)
class Averages:
    """Weighted means over a batch."""

    loss: float
    accuracy: float | None
    """Share of correct predictions; None if the loss predicts no classes."""


@dataclass(frozen=True)
class Sizes:
    """How large the derivatives of a batch's losses are."""

    scale: float
    """A power of four that brings the largest |g| or diagonal entry of ∇²ℓ near 1; 1 if all are 0."""
    least_curvature: float
    """The smallest over samples of their largest diagonal entry of ∇²ℓ; if small, H may be smaller than gradients let
    expect."""


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
    form: ClassVar[Form] = "row"
    """What it takes for logits, and so what labels are."""
    settings: ClassVar[frozenset[str]] = frozenset()
    """Names of the options that it takes."""

    @property
    def sums(self) -> int:
        """Number of sums over the batch that its coefficients rest on, to count their rounding; 1 for the weights."""
        return 1

    def configured(self, options: Options, output: Output) -> Loss:
        """Return the loss with the options that it takes, for a model's output.

        Raises:
            OptionsError: ``class_weights_mismatch``, ``pos_weight_mismatch``, ``loss_mismatch``.
        """
        return self

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
        """Return how many predictions of each sample are right, or their share, (N,); None if it predicts no classes.

        Args:
            z: (N, C) logits.
            y: Labels of the same samples, as ``Targets.y``.
        """

    def predictions(self, y: Tensor) -> Tensor:
        """Return how many labels of each sample count, (N,) float64."""
        return torch.ones(len(y), dtype=torch.float64, device=y.device)

    def mass(self, y: Tensor) -> Tensor | None:
        """Return what each sample adds to the divisor of the mean, (N,) float64; None if that is 1 for each.

        A loss with another mass is linear in its targets.
        """
        return None

    def guess(self, logits: int) -> float | None:
        """Return the mean loss of equal probabilities; None if the loss has none to compare with."""
        return None

    def distributions(self, z: Tensor) -> Tensor | None:
        """Return logits (B, C) as rows of one logit for each class; None if they stand for something else."""
        return z

    @abstractmethod
    def classes(self, logits: int) -> int | None:
        """Return the number of classes, or of labels that are true or not; None if the loss knows none."""

    @abstractmethod
    def targets(self, y: Tensor, logits: int) -> Tensor:
        """Return labels as the rows that logits are compared with, (N, …) float64.

        Args:
            y: Labels as ``Targets.y``; class indices are below ``classes``.
            logits: C.

        Raises:
            BatchError: ``label_classes_mismatch``.
        """

    def averages(self, blocks: Iterable[Compared]) -> Averages:
        """Average the loss and the accuracy over all samples, given block by block."""
        loss, right, counted = 0.0, 0.0, 0.0
        for z, y, weights, labels in blocks:
            loss += float((weights * self.values(z, y)).sum())
            correct = self.correct(z, labels)
            if correct is not None:
                right += float((correct.double() * weights).sum())
                counted += float((self.predictions(labels) * weights).sum())
        return Averages(loss, right / counted if counted else None)

    def sizes(self, blocks: Iterable[Compared]) -> Sizes:
        """Measure the derivatives of all samples that have a weight, given block by block."""
        largest, least = 0.0, 1.0
        for z, y, weights, _ in blocks:
            at, counted = self.derivatives(z, y), weights > 0
            curvature = at.diagonal.abs().amax(dim=1)
            size = torch.maximum(at.gradient.abs().amax(dim=1), curvature)
            largest = max(largest, float(torch.where(counted, size, 0.0).max()))
            least = min(least, float(torch.where(counted, curvature, 1.0).min()))
        return Sizes(power_of_four(largest), least)


def in_blocks(z: Tensor, targets: Targets, first: int = 0) -> Iterator[Compared]:
    """Yield as many samples at a time as losses work on in little memory.

    Args:
        z: (B, C) logits of consecutive samples.
        targets: Targets of all samples.
        first: Index of the first of the samples.
    """
    size = max(1, BLOCK // z.shape[1])
    for start in range(0, len(z), size):
        some = z[start : start + size]
        rows = slice(first + start, first + start + len(some))
        yield Compared(some.to(targets.y.device), targets.rows(rows), targets.weights[rows], targets.y[rows])


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
