"""Smooth activations with their first two derivatives, as the closed form needs them.

Each entry returns φ(h), φ′(h), φ″(h) elementwise, written so that no term cancels where φ′ is small.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from wsb_engine.model import Activation

Derivatives = tuple[Tensor, Tensor, Tensor]


def _identity(h: Tensor, _: Activation) -> Derivatives:
    return h, torch.ones_like(h), torch.zeros_like(h)


def _tanh(h: Tensor, _: Activation) -> Derivatives:
    a = torch.tanh(h)
    # sech² from σ(2h)σ(−2h): 1 − a² loses every digit once |h| > 18.
    first = 4 * torch.sigmoid(2 * h) * torch.sigmoid(-2 * h)
    return a, first, -2 * a * first


def _sigmoid(h: Tensor, _: Activation) -> Derivatives:
    a, complement = torch.sigmoid(h), torch.sigmoid(-h)
    first = a * complement
    return a, first, first * (complement - a)


def _softplus(h: Tensor, _: Activation) -> Derivatives:
    # logaddexp, since torch's softplus turns linear above a threshold.
    value = torch.logaddexp(h, torch.zeros_like(h))
    first = torch.sigmoid(h)
    return value, first, first * torch.sigmoid(-h)


def _gelu(h: Tensor, activation: Activation) -> Derivatives:
    # φ = h Φ(αh)
    alpha = activation.alpha
    g = alpha * h
    cdf = 0.5 * torch.special.erfc(-g / math.sqrt(2))
    pdf = torch.exp(-0.5 * g * g) / math.sqrt(2 * math.pi)
    return h * cdf, cdf + g * pdf, alpha * pdf * (2 - g * g)


def _gelu_tanh(h: Tensor, activation: Activation) -> Derivatives:
    # φ = h σ(2u), u = α √(2/π) (h + β 0.044715 h³)
    c, k = activation.alpha * math.sqrt(2 / math.pi), activation.beta * 0.044715
    u = c * (h + k * h**3)
    u1, u2 = c * (1 + 3 * k * h * h), 6 * c * k * h
    s, complement = torch.sigmoid(2 * u), torch.sigmoid(-2 * u)
    s1 = 2 * s * complement * u1
    s2 = 2 * s * complement * (u2 + 2 * (complement - s) * u1 * u1)
    return h * s, s + h * s1, 2 * s1 + h * s2


def _silu(h: Tensor, _: Activation) -> Derivatives:
    s, complement = torch.sigmoid(h), torch.sigmoid(-h)
    return h * s, s * (1 + h * complement), s * complement * (2 + h * (complement - s))


def _elu(h: Tensor, activation: Activation) -> Derivatives:
    alpha = activation.alpha
    negative = h.clamp(max=0)
    exponential = alpha * torch.exp(negative)
    positive = h > 0
    zero = torch.zeros_like(h)
    return (
        torch.where(positive, h, alpha * torch.expm1(negative)),
        torch.where(positive, torch.ones_like(h), exponential),
        torch.where(positive, zero, exponential),
    )


_TABLE: dict[str, Callable[[Tensor, Activation], Derivatives]] = {
    "identity": _identity,
    "tanh": _tanh,
    "sigmoid": _sigmoid,
    "softplus": _softplus,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "silu": _silu,
    "elu": _elu,
}

KINDS = frozenset(_TABLE)


def value(activation: Activation, h: Tensor) -> Tensor:
    """Compute φ(h) by operations whose automatic derivatives do not cancel.

    torch's own derivative of tanh is 1 − a², which loses every digit once |h| > 18, and so does its derivative of the
    logistic function beyond 36.

    Raises:
        KeyError: if ``activation.kind`` is not in ``KINDS``.
    """
    match activation.kind:
        case "identity":
            return h
        case "tanh":
            positive = h.detach() >= 0
            e = torch.exp(torch.where(positive, -2 * h, 2 * h))  # not expm1, whose derivative adds 1 again
            return torch.where(positive, 1 - e, e - 1) / (1 + e)
        case "sigmoid":
            return _logistic(h)
        case "softplus":
            positive = h.detach() >= 0
            return torch.where(positive, h, torch.zeros_like(h)) + torch.log1p(torch.exp(torch.where(positive, -h, h)))
        case "gelu":
            cdf: Tensor = 0.5 * torch.special.erfc(-activation.alpha * h / math.sqrt(2))
            return h * cdf
        case "gelu_tanh":
            c, k = activation.alpha * math.sqrt(2 / math.pi), activation.beta * 0.044715
            return h * _logistic(2 * c * (h + k * h**3))
        case "silu":
            return h * _logistic(h)
        case "elu":
            return torch.where(h > 0, h, activation.alpha * (torch.exp(h.clamp(max=0)) - 1))
    raise KeyError(activation.kind)


def _logistic(h: Tensor) -> Tensor:
    positive = h.detach() >= 0
    e = torch.exp(torch.where(positive, -h, h))
    return torch.where(positive, torch.ones_like(h), e) / (1 + e)


def derivatives(activation: Activation, h: Tensor) -> Derivatives:
    """Compute φ(h), φ′(h) and φ″(h), each of h's shape.

    Raises:
        KeyError: if ``activation.kind`` is not in ``KINDS``.
    """
    return _TABLE[activation.kind](h, activation)
