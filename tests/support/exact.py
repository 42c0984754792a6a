"""Hessians of small perceptrons without rounding: second-order Taylor arithmetic in ball arithmetic.

Shares no formula with the engine: every value carries its gradient and its Hessian in the parameters through the plain
forward pass and through log Σ exp z − y·z as written, at a precision that outlasts all cancellation. Balls bound what
is left of rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from flint import arb, arb_mat, ctx

GUARD_BITS = 160


@dataclass(frozen=True)
class Jet:
    """A value with its gradient (1 × P) and its Hessian (P × P)."""

    value: arb
    gradient: arb_mat
    hessian: arb_mat

    def through(self, value: arb, first: arb, second: arb) -> Jet:
        """f of it, given f, f′ and f″ at the value."""
        outer = self.gradient.transpose() * self.gradient
        return Jet(value, self.gradient * first, self.hessian * first + outer * second)


Activation = Callable[[arb], tuple[arb, arb, arb]]


def tanh(h: arb) -> tuple[arb, arb, arb]:
    a = h.tanh()
    first = 1 - a * a
    return a, first, -2 * a * first


def sigmoid(h: arb) -> tuple[arb, arb, arb]:
    a = 1 / (1 + (-h).exp())
    first = a * (1 - a)
    return a, first, first * (1 - 2 * a)


def softplus(h: arb) -> tuple[arb, arb, arb]:
    a = 1 / (1 + (-h).exp())
    return (1 + h.exp()).log(), a, a * (1 - a)


def gelu(h: arb) -> tuple[arb, arb, arb]:
    cdf = (1 + (h / arb(2).sqrt()).erf()) / 2
    pdf = (-h * h / 2).exp() / (2 * arb.pi()).sqrt()
    return h * cdf, cdf + h * pdf, pdf * (2 - h * h)


def silu(h: arb) -> tuple[arb, arb, arb]:
    s, s1, s2 = sigmoid(h)
    return h * s, s + h * s1, 2 * s1 + h * s2


def relu(h: arb) -> tuple[arb, arb, arb]:
    return (h, arb(1), arb(0)) if h > 0 else (arb(0), arb(0), arb(0))


ACTIVATIONS: dict[str, Activation] = {
    "tanh": tanh,
    "sigmoid": sigmoid,
    "softplus": softplus,
    "gelu": gelu,
    "silu": silu,
    "relu": relu,
}


@dataclass(frozen=True)
class Dense:
    """One layer; the indices say which parameter each entry is, −1 for none."""

    weight: np.ndarray
    weight_index: np.ndarray
    bias: np.ndarray | None
    bias_index: np.ndarray | None


def hessian(
    layers: Sequence[Dense],
    activations: Sequence[str],
    x: np.ndarray,
    y: np.ndarray,
    weights: np.ndarray,
    parameters: int,
    margin: float,
) -> arb_mat:
    """The Hessian of Σ w_s ℓ_s / Σ w_s.

    Args:
        layers: Of the network, numbers as stored.
        activations: Names between the layers.
        x: (N, d) inputs.
        y: (N, C) targets, or (N, 1) probabilities of the positive class for one logit.
        weights: (N,)
        parameters: P.
        margin: Largest difference of logits, or the logit; sets the precision.
    """
    magnitude = max(1.0, *(float(np.abs(layer.weight).max()) for layer in layers), float(np.abs(x).max()))
    ctx.prec = int(GUARD_BITS + 2 * abs(margin) / math.log(2) + 8 * len(layers) * math.log2(magnitude))
    total, mass = arb_mat(parameters, parameters), sum((arb(float(w)) for w in weights), arb(0))
    for row, target, w in zip(x, y, weights, strict=True):
        if w:
            total += _sample(layers, activations, row, target, parameters) * (arb(float(w)) / mass)
    return total


def _sample(layers: Sequence[Dense], activations: Sequence[str], x: np.ndarray, y: np.ndarray, P: int) -> arb_mat:
    none, flat = arb_mat(P, P), arb_mat(1, P)
    a = [Jet(arb(float(value)), flat, none) for value in x]
    for index, layer in enumerate(layers):
        h = [_affine(layer, i, a, P) for i in range(len(layer.weight))]
        a = h if index == len(activations) else [j.through(*ACTIVATIONS[activations[index]](j.value)) for j in h]
    if len(a) == 1:
        z = a[0]
        p = 1 / (1 + (-z.value).exp())
        return z.through(z.value, p - arb(float(y[0])), p * (1 - p)).hessian
    exponentials = [z.value.exp() for z in a]
    mass = sum(exponentials, arb(0))
    s = sum((arb(float(each)) for each in y), arb(0))
    made, mean = arb_mat(P, P), arb_mat(1, P)
    for z, e, target in zip(a, exponentials, y, strict=True):
        p = e / mass
        made += z.hessian * (s * p - arb(float(target))) + (z.gradient.transpose() * z.gradient) * (s * p)
        mean += z.gradient * p
    return made - (mean.transpose() * mean) * s


def _affine(layer: Dense, i: int, a: Sequence[Jet], P: int) -> Jet:
    value, gradient, curvature = arb(0), arb_mat(1, P), arb_mat(P, P)
    for j, each in enumerate(a):
        w = arb(float(layer.weight[i, j]))
        value += w * each.value
        gradient += each.gradient * w
        curvature += each.hessian * w
        p = int(layer.weight_index[i, j])
        if p >= 0:
            gradient[0, p] += each.value
            for q in range(P):  # the product rule's mixed terms
                curvature[p, q] += each.gradient[0, q]
                curvature[q, p] += each.gradient[0, q]
    if layer.bias is not None and layer.bias_index is not None:
        value += arb(float(layer.bias[i]))
        if layer.bias_index[i] >= 0:
            gradient[0, int(layer.bias_index[i])] += 1
    return Jet(value, gradient, curvature)


@dataclass(frozen=True)
class Extreme:
    """What is certain of λ_max: a Rayleigh quotient is not above it, and it is not above that plus its residual."""

    below: arb
    above: arb


def largest(H: arb_mat) -> Extreme:
    """λ_max from the eigenvector that a float64 solver finds, in ball arithmetic.

    ``above`` takes the solver's word that no other eigenvalue is larger by more than rounding.
    """
    P = H.nrows()
    sizes = [abs(H[i, j]).mid() for i in range(P) for j in range(P)]
    scale = max(sizes)
    if scale == 0:
        return Extreme(arb(0), arb(0))
    scaled = np.array([[float((H[i, j] / scale).mid()) for j in range(P)] for i in range(P)])
    _, vectors = np.linalg.eigh((scaled + scaled.T) / 2)
    x = arb_mat([[arb(float(each))] for each in vectors[:, -1]])
    image, square = H * x, (x.transpose() * x)[0, 0]
    value = (x.transpose() * image)[0, 0] / square
    residual = image - x * value
    size = sum((residual[i, 0] ** 2 for i in range(P)), arb(0)).sqrt() / square.sqrt()
    return Extreme(value, value + size)
