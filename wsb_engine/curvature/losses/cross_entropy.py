"""Softmax cross-entropy of C ≥ 2 logits in forms that do not cancel (mathematics.md, section 10).

With the pivot k = argmax z, d_j = z_j − z_k ≤ 0, E = Σ_{j≠k} e^{d_j} and s = Σ_j y_j

    ℓ = s log1p(E) − Σ_{j≠k} y_j d_j,     p_k = 1/(1 + E),   p_j = e^{d_j}/(1 + E),   1 − p_k = E/(1 + E)
    g_j = s p_j − y_j  for j ≠ k,         g_k = −Σ_{j≠k} g_j  if y_k > s/2,  else s p_k − y_k
    ∇²ℓ = s S,  S_ij = −p_i p_j,  S_ii = p_i (1 − p_i) = (ℒ ℒᵀ)_ii,   (ℒᵀ)_ji = √p_j (δ_ji − p_i)

hold for any fixed k, ties included. S annihilates constants, so what it multiplies is first shifted by its entry k
where p_k > ½: S r = p ⊙ (r′ − p·r′). Every number is then right to a few units of rounding of the logits' own exact
function, at any margin; p − y and diag(p) − p pᵀ as written lose all digits of a model that is sure.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from wsb_engine.curvature.losses.base import (
    UNIT,
    Loss,
    LossDerivatives,
    LossRounding,
    Output,
    across,
    mismatched,
    of_product,
)
from wsb_engine.errors import BatchError, OptionsError
from wsb_engine.options import LossKind, Options

TARGET = 8
"""Units of rounding of a target that smoothing and weights made."""


@dataclass(frozen=True)
class CrossEntropy(Loss):
    """Cross-entropy of the softmax of the logits; targets are rows (N, C), not negative.

    Class weights v and label smoothing ε make (1 − ε) v ⊙ y + (ε/C) v of the row y of a label, and the mean divides by
    the weights of the labels, as ``torch.nn.CrossEntropyLoss`` does.
    """

    kind: ClassVar[LossKind] = "cross_entropy"
    settings = frozenset({"class_weights", "label_smoothing", "ignore_index"})

    class_weights: tuple[float, ...] | None = None
    label_smoothing: float = 0.0

    @property
    def sums(self) -> int:
        # Weights of samples, and the mean mass with its own.
        return 1 if self.class_weights is None else 3

    def configured(self, options: Options, output: Output) -> CrossEntropy:
        classes = output.sizes[output.axis]
        if classes < 2:
            raise OptionsError(
                f"{self.kind} takes at least two logits, the model gives {classes}",
                code="loss_mismatch",
                advice="Set loss to binary_cross_entropy if it is the logit of one of two classes.",
                loss=self.kind,
                logits=classes,
            )
        weights = options.class_weights
        if weights is not None and len(weights) != classes:
            raise OptionsError(
                f"class_weights has {len(weights)} numbers, the model has {classes} classes",
                code="class_weights_mismatch",
                advice="Give one weight for each class, in the order of the logits.",
                expected=classes,
                actual=len(weights),
            )
        return replace(self, class_weights=weights, label_smoothing=options.label_smoothing)

    def values(self, z: Tensor, y: Tensor) -> Tensor:
        """Return ℓ of each sample, (N,) float64; its derivatives of every order are the stable forms."""
        z, y = z.double(), y.double()
        margins = margins_of(z, y)
        return y.sum(dim=1) * margins.normaliser - (y * margins.d).sum(dim=1)

    def derivatives(self, z: Tensor, y: Tensor) -> SoftmaxDerivatives:
        z, y = z.double(), y.double()
        k, is_pivot = pivot(z)
        x = torch.where(is_pivot, 0.0, (z - z.gather(1, k)).exp())
        E = x.sum(dim=1, keepdim=True)
        p = torch.where(is_pivot, 1 / (1 + E), x / (1 + E))
        complement = torch.where(is_pivot, E / (1 + E), 1 - p)
        s = y.sum(dim=1, keepdim=True)
        others = torch.where(is_pivot, 0.0, s * p - y)
        right = y.gather(1, k) > s / 2
        at_pivot = torch.where(right, -others.sum(dim=1, keepdim=True), s * p.gather(1, k) - y.gather(1, k))
        return SoftmaxDerivatives(torch.where(is_pivot, at_pivot, others), p, complement, k, s)

    def correct(self, z: Tensor, y: Tensor) -> Tensor:
        return z.argmax(dim=1) == (y if y.ndim == 1 else y.argmax(dim=1))

    def mass(self, y: Tensor) -> Tensor | None:
        return None if self.class_weights is None or y.ndim > 1 else self.weights(y, relative=True)[y]

    def guess(self, logits: int) -> float:
        return math.log(self.classes(logits))

    def classes(self, logits: int) -> int:
        return logits

    def targets(self, y: Tensor, logits: int) -> Tensor:
        rows, share = self.label_rows(y, logits), self.label_smoothing
        if self.class_weights is None and not share:
            return rows
        if self.class_weights is None:
            return (1 - share) * rows + share / logits
        # Probabilities are not divided by their weights.
        weights = self.weights(rows, relative=y.ndim == 1)
        return ((1 - share) * rows + share / logits) * weights

    def weights(self, like: Tensor, *, relative: bool) -> Tensor:
        """Return the weights of classes, (C,) float64; relative ones near 1, by a power of two."""
        weights = torch.tensor(self.class_weights, dtype=torch.float64, device=like.device)
        return weights * 2.0 ** -math.frexp(max(self.class_weights or ()))[1] if relative else weights

    def label_rows(self, y: Tensor, logits: int) -> Tensor:
        """Return labels as distributions over the classes, (N, C) float64."""
        if y.ndim == 1 and y.is_floating_point():
            raise BatchError(
                f"y has one number a row that is no class; the model has {logits} classes",
                code="label_classes_mismatch",
                advice="Give integer labels [N], or probabilities [N, C].",
            )
        if y.ndim == 1:
            rows = torch.zeros(len(y), logits, dtype=torch.float64, device=y.device)
            return rows.scatter_(1, y.long().unsqueeze(1), 1.0)
        if y.shape[1] != logits:
            raise mismatched(y.shape[1], logits)
        # Files round their sum.
        return y.double() / y.double().sum(dim=1, keepdim=True)


@dataclass(frozen=True)
class SoftmaxDerivatives(LossDerivatives):
    """g and ∇²ℓ = s S of B samples; all float64."""

    gradient: Tensor
    p: Tensor
    """(B, C) probabilities."""
    complement: Tensor
    """1 − p"""
    pivot: Tensor
    """k, (B, 1)"""
    total: Tensor
    """s = Σ_j y_j, (B, 1)"""

    @property
    def shifts(self) -> Tensor:
        """(B, 1): True if p_k > ½, so that what S multiplies is shifted by its entry k."""
        return self.p.gather(1, self.pivot) > 0.5

    @property
    def diagonal(self) -> Tensor:
        return self.total * (self.p * self.complement)

    def curvature(self) -> Tensor:
        matrix = -self.p.unsqueeze(2) * self.p.unsqueeze(1)
        return self.total.unsqueeze(2) * matrix.diagonal_scatter(self.p * self.complement, dim1=1, dim2=2)

    def factor(self) -> Tensor:
        """Return √s ℒᵀ, (B, C, C)."""
        root = (self.total * self.p).sqrt()
        matrix = -root.unsqueeze(2) * self.p.unsqueeze(1)
        return matrix.diagonal_scatter(root * self.complement, dim1=1, dim2=2)

    def factor_times(self, W: Tensor) -> Tensor:
        shifted = W - torch.where(self.shifts, W[self.pivot.squeeze(1)], 0.0).unsqueeze(1)
        mean = (self.p.unsqueeze(1) @ shifted).squeeze(1)
        return (self.total * self.p).sqrt().unsqueeze(2) * (shifted - mean.unsqueeze(1))

    def column_product(self, scale: float) -> Callable[[Tensor], Tensor]:
        p, pivot, shift, total = (across(each) for each in (self.p, self.pivot, self.shifts, scale * self.total))

        def product(r: Tensor) -> Tensor:
            r -= torch.where(shift, r.gather(0, pivot.expand(1, r.shape[1], -1)), 0.0)
            return r.sub_((p * r).sum(dim=0, keepdim=True)).mul_(p).mul_(total)

        return product

    def rounding(self, z: Tensor, y: Tensor, radius: Tensor) -> LossRounding:
        """Bound the rounding errors (mathematics.md, section 11)."""
        classes, k = z.shape[1], self.pivot
        d = (z - z.gather(1, k)).abs()
        distance = radius + radius.gather(1, k) + UNIT * d
        relative = torch.expm1(3 * distance.amax(dim=1, keepdim=True)) + (4 * classes + 32) * UNIT
        # The last term is for targets that were themselves rounded.
        each = relative * self.total * self.p + 2 * UNIT * self.gradient.abs() + TARGET * UNIT * y
        # Summed without the pivot, next to which the others may be nothing.
        others = each.scatter(1, k, 0.0).sum(dim=1, keepdim=True)
        others = others + 2 * classes * UNIT * self.gradient.abs().sum(dim=1, keepdim=True)
        # At the pivot g is the sum of the others, or a difference; the first has the smaller radius if y_k > s/2.
        right = y.gather(1, k) > self.total / 2
        at_pivot = torch.where(right, others, each.gather(1, k))
        return LossRounding(
            gradient=each.scatter(1, k, at_pivot),
            curvature=of_product(relative).squeeze(1),
            total=self.total.squeeze(1) * (1 + 4 * classes * UNIT),
            norm=self._norm,
        )

    def _norm(self, X: Tensor, Y: Tensor) -> Tensor:
        """Bound ‖Aᵀ |S| B‖_F by |S_ij| ≤ p_i p_j off the diagonal, where the pivot is taken apart from the others."""
        diagonal = (self.p * self.complement * X * Y).sum(dim=1)
        p, k = self.p.scatter(1, self.pivot, 0.0), self.pivot
        x, y = (p * X).sum(dim=1), (p * Y).sum(dim=1)
        across_pivot = X.gather(1, k).squeeze(1) * y + x * Y.gather(1, k).squeeze(1)
        return diagonal + self.p.gather(1, k).squeeze(1) * across_pivot + x * y


class Margins(NamedTuple):
    """Logits beside the pivot's, whose derivatives of every order do not cancel."""

    d: Tensor
    """d, (N, C); 0 for targets of 0, and identically for the pivot of a sharp row."""
    normaliser: Tensor
    """log1p(E), (N,): ln p_j = d_j − log1p(E)."""
    others: Tensor
    """d, (N, C), and −∞ for the pivot."""


def margins_of(z: Tensor, y: Tensor) -> Margins:
    """Compute the margins of logits (N, C) for targets (N, C), both float64.

    Rows with p_k > ½ are sharp: they are differentiated through z_k, so that d_k = 0 identically. In flat rows z_k is a
    constant shift, since 1 − (1 − p_k) would cost √C units of rounding there.
    """
    k, is_pivot = pivot(z)
    top = z.gather(1, k)
    with torch.no_grad():
        sharp = torch.where(is_pivot, 0.0, (z - top).exp()).sum(dim=1, keepdim=True) < 1
    d = z - torch.where(sharp, top, top.detach())
    x = torch.where(is_pivot, torch.where(sharp, 0.0, torch.expm1(d)), d.exp())
    # Left out where they are 0: y_k (z_k − z_k) would cancel in the gradient, and 0 · −∞ is no number.
    counted = torch.where((is_pivot & sharp) | (y == 0), 0.0, d)
    return Margins(counted, torch.log1p(x.sum(dim=1)), torch.where(is_pivot, -math.inf, d))


def pivot(z: Tensor) -> tuple[Tensor, Tensor]:
    """Return k (B, 1), a constant under differentiation, and where it is, (B, C)."""
    k = z.detach().argmax(dim=1, keepdim=True)
    return k, torch.zeros_like(z, dtype=torch.bool).scatter(1, k, True)


LOSS = CrossEntropy()
