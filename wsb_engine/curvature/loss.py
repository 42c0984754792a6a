"""Cross-entropy of logits in forms that do not cancel, and its targets (mathematics.md, section 10).

L(θ) = Σ_s w_s ℓ_s with Σ_s w_s = 1: softmax cross-entropy for C ≥ 2 logits, binary cross-entropy for one.

With the pivot k = argmax z, d_j = z_j − z_k ≤ 0, E = Σ_{j≠k} e^{d_j} and s = Σ_j y_j

    ℓ = s log1p(E) − Σ_{j≠k} y_j d_j,     p_k = 1/(1 + E),   p_j = e^{d_j}/(1 + E),   1 − p_k = E/(1 + E)
    g_j = s p_j − y_j  for j ≠ k,         g_k = −Σ_{j≠k} g_j  if y_k > s/2,  else s p_k − y_k
    ∇²ℓ = s S,  S_ij = −p_i p_j,  S_ii = p_i (1 − p_i) = (ℒ ℒᵀ)_ii,   (ℒᵀ)_ji = √p_j (δ_ji − p_i)

hold for any fixed k, ties included. S annihilates constants, so what it multiplies is first shifted by its entry k
where p_k > ½: S r = p ⊙ (r′ − p·r′). Every number is then right to a few units of rounding of the logits' own exact
function, at any margin; p − y and diag(p) − p pᵀ as written lose all digits of a model that is sure.

Whatever the dtype of the logits, this is float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["cross_entropy", "binary_cross_entropy"]

LARGEST_EXPONENT = 600
"""Of the power of two that brings the gradient and the curvature of a batch near 1; squares of inputs meet it too."""


@dataclass(frozen=True)
class Targets:
    """What the logits are compared with."""

    y: Tensor
    """(N, C) rows on the simplex, or (N, 1) probabilities of the positive class."""
    weights: Tensor
    """(N,) float64, non-negative, of sum 1."""

    @property
    def kind(self) -> Kind:
        return "binary_cross_entropy" if self.y.shape[1] == 1 else "cross_entropy"


def sample_losses(z: Tensor, y: Tensor) -> Tensor:
    """ℓ of each sample, (N,) float64; its derivatives of every order are the stable forms.

    Rows with p_k > ½ are differentiated through z_k, so that d_k = 0 identically; in flat rows z_k is a constant shift,
    since 1 − (1 − p_k) would cost √C units of rounding there.

    Args:
        z: (N, C) logits, or (N, 1).
        y: Targets of the same shape.
    """
    z, y = z.double(), y.double()
    if z.shape[1] == 1:
        positive = z.detach() >= 0
        # `abs` has the derivative 0 at 0.
        a = torch.where(positive, z, -z)
        return (torch.log1p(torch.exp(-a)) + torch.where(positive, 1 - y, y) * a).squeeze(1)
    k, is_pivot = _pivot(z)
    top = z.gather(1, k)
    with torch.no_grad():
        sharp = torch.where(is_pivot, 0.0, (z - top).exp()).sum(dim=1, keepdim=True) < 1
    d = z - torch.where(sharp, top, top.detach())
    x = torch.where(is_pivot, torch.where(sharp, 0.0, torch.expm1(d)), d.exp())
    # Left out where they are 0: y_k (z_k − z_k) would cancel in the gradient, and 0 · −∞ is no number.
    counted = torch.where((is_pivot & sharp) | (y == 0), 0.0, d)
    return y.sum(dim=1) * torch.log1p(x.sum(dim=1)) - (y * counted).sum(dim=1)


@dataclass(frozen=True)
class Head:
    """What the loss contributes to the curvature at some logits; all float64."""

    p: Tensor
    """(B, C) probabilities, or (B, 1) of the positive class."""
    complement: Tensor
    """1 − p"""
    gradient: Tensor
    """g = ∂ℓ/∂z, (B, C)"""
    pivot: Tensor
    """k, (B, 1)"""
    total: Tensor
    """s = Σ_j y_j, (B, 1); 1 for one logit."""

    @property
    def shifts(self) -> Tensor:
        """(B, 1): True if p_k > ½, so that what S multiplies is shifted by its entry k."""
        return self.p.gather(1, self.pivot) > 0.5

    def curvature(self) -> Tensor:
        """s S, (B, C, C)."""
        if self.p.shape[1] == 1:
            return (self.p * self.complement).unsqueeze(2)
        matrix = -self.p.unsqueeze(2) * self.p.unsqueeze(1)
        return self.total.unsqueeze(2) * matrix.diagonal_scatter(self.p * self.complement, dim1=1, dim2=2)

    def factor(self) -> Tensor:
        """√s ℒᵀ, (B, C, C): its square from the left is s S."""
        if self.p.shape[1] == 1:
            return (self.p * self.complement).sqrt().unsqueeze(2)
        root = (self.total * self.p).sqrt()
        matrix = -root.unsqueeze(2) * self.p.unsqueeze(1)
        return matrix.diagonal_scatter(root * self.complement, dim1=1, dim2=2)

    def factor_times(self, W: Tensor) -> Tensor:
        """√s ℒᵀ W, (B, C, d), for W (C, d) float64."""
        if self.p.shape[1] == 1:
            return (self.p * self.complement).sqrt().unsqueeze(2) * W
        shifted = W - torch.where(self.shifts, W[self.pivot.squeeze(1)], 0.0).unsqueeze(1)
        mean = (self.p.unsqueeze(1) @ shifted).squeeze(1)
        return (self.total * self.p).sqrt().unsqueeze(2) * (shifted - mean.unsqueeze(1))


def head(z: Tensor, y: Tensor) -> Head:
    """The head at logits z and targets y, (B, C) or (B, 1) each; differentiable once in z."""
    z, y = z.double(), y.double()
    if z.shape[1] == 1:
        positive = z.detach() >= 0
        e = torch.exp(torch.where(positive, -z, z))
        small, large = e / (1 + e), 1 / (1 + e)
        p, complement = torch.where(positive, large, small), torch.where(positive, small, large)
        k = torch.zeros_like(z, dtype=torch.int64)
        return Head(p, complement, (1 - y) * p - y * complement, k, torch.ones_like(z))
    k, is_pivot = _pivot(z)
    x = torch.where(is_pivot, 0.0, (z - z.gather(1, k)).exp())
    E = x.sum(dim=1, keepdim=True)
    p = torch.where(is_pivot, 1 / (1 + E), x / (1 + E))
    complement = torch.where(is_pivot, E / (1 + E), 1 - p)
    s = y.sum(dim=1, keepdim=True)
    others = torch.where(is_pivot, 0.0, s * p - y)
    right = y.gather(1, k) > s / 2
    at_pivot = torch.where(right, -others.sum(dim=1, keepdim=True), s * p.gather(1, k) - y.gather(1, k))
    return Head(p, complement, torch.where(is_pivot, at_pivot, others), k, s)


def curvature_times(p: Tensor, shift: Tensor | None, pivot: Tensor | None, r: Tensor) -> Tensor:
    """S r for many columns: p ⊙ (r′ − p·r′), in place of r.

    Args:
        p: (C, 1, B) float64; of one logit p(1 − p).
        shift: (1, 1, B) True where p_k > ½; None for one logit.
        pivot: (1, 1, B) k; None for one logit.
        r: (C, m, B) float64, overwritten.
    """
    if shift is None or pivot is None:
        return r.mul_(p)
    r -= torch.where(shift, r.gather(0, pivot.expand(1, r.shape[1], -1)), 0.0)
    return r.sub_((p * r).sum(dim=0, keepdim=True)).mul_(p)


def scale(z: Tensor, targets: Targets) -> float:
    """A power of four that brings the largest |g| or p(1 − p) of a batch near 1; 1 if all of them are 0.

    Args:
        z: (N, C) logits.
        targets: Targets on the same device.
    """
    at = head(z, targets.y)
    sizes = torch.maximum(at.gradient.abs(), at.p * at.complement).amax(dim=1)
    return power_of_four(float(torch.where(targets.weights > 0, sizes, 0.0).max()))


def least_curvature(z: Tensor, targets: Targets) -> float:
    """The smallest over samples of their largest p(1 − p): if small, H may be smaller than gradients let expect."""
    at = head(z, targets.y)
    return float(torch.where(targets.weights > 0, (at.p * at.complement).amax(dim=1), 1.0).min())


def power_of_four(size: float) -> float:
    """One that brings a size near 1; 1 if it is 0."""
    if not size:
        return 1.0
    exponent = max(min(-math.frexp(size)[1], LARGEST_EXPONENT), -LARGEST_EXPONENT)
    return math.ldexp(1.0, exponent - exponent % 2)


def accuracy(z: Tensor, targets: Targets) -> float:
    """Weighted share of samples whose most probable class is the label's most probable class."""
    if z.shape[1] == 1:
        correct = (z.squeeze(1) > 0) == (targets.y.squeeze(1) > 0.5)
    else:
        correct = z.argmax(dim=1) == targets.y.argmax(dim=1)
    return float((correct.double() * targets.weights).sum())


def _pivot(z: Tensor) -> tuple[Tensor, Tensor]:
    """k (B, 1), a constant under differentiation, and where it is, (B, C)."""
    k = z.detach().argmax(dim=1, keepdim=True)
    return k, torch.zeros_like(z, dtype=torch.bool).scatter(1, k, True)
