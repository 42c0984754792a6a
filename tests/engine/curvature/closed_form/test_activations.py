"""φ, φ′ and φ″ against automatic differentiation and high precision."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from wsb_engine.curvature.closed_form.activations import KINDS, derivatives
from wsb_engine.model import Activation

REFERENCE = {
    "identity": nn.Identity(),
    "tanh": nn.Tanh(),
    "sigmoid": nn.Sigmoid(),
    "softplus": nn.Softplus(threshold=1000),
    "gelu": nn.GELU(),
    "gelu_tanh": nn.GELU(approximate="tanh"),
    "silu": nn.SiLU(),
    "elu": nn.ELU(),
}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_derivatives_equal_automatic_differentiation(kind: str) -> None:
    h = torch.linspace(-6, 6, 241, dtype=torch.float64) + 1e-3
    h.requires_grad_()
    value = REFERENCE[kind](h) * 1.0
    (first,) = torch.autograd.grad(value.sum(), h, create_graph=True)
    second = torch.autograd.grad(first.sum(), h, allow_unused=True)[0] if first.requires_grad else None
    got = derivatives(Activation(kind=kind), h.detach())
    torch.testing.assert_close(got[0], value.detach(), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(got[1], first.detach(), rtol=1e-11, atol=1e-14)
    torch.testing.assert_close(got[2], torch.zeros_like(h) if second is None else second, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_derivatives_stay_finite_far_out(kind: str) -> None:
    h = torch.tensor([-1e4, -800.0, -40.0, 0.0, 40.0, 800.0, 1e4], dtype=torch.float64)
    for part in derivatives(Activation(kind=kind), h):
        assert torch.isfinite(part).all()


def test_tanh_keeps_its_small_slope_where_one_minus_its_square_is_lost() -> None:
    h = torch.tensor([25.0], dtype=torch.float64)
    _, first, second = derivatives(Activation(kind="tanh"), h)
    # sech²(25) = 4 e^−50 to relative 4e-22
    expected = 4 * torch.exp(torch.tensor([-50.0], dtype=torch.float64))
    torch.testing.assert_close(first, expected, rtol=1e-14, atol=0)
    torch.testing.assert_close(second, -2 * expected, rtol=1e-14, atol=0)


def test_elu_takes_its_slope() -> None:
    h = torch.tensor([-1.0, 2.0], dtype=torch.float64)
    value, first, second = derivatives(Activation(kind="elu", alpha=2.0), h)
    e = torch.exp(torch.tensor(-1.0, dtype=torch.float64))
    torch.testing.assert_close(value, torch.stack([2 * (e - 1), torch.tensor(2.0, dtype=torch.float64)]))
    torch.testing.assert_close(first, torch.stack([2 * e, torch.ones_like(e)]))
    torch.testing.assert_close(second, torch.stack([2 * e, torch.zeros_like(e)]))


def test_the_constants_of_a_gelu_may_be_a_file_s_own() -> None:
    h = torch.linspace(-4, 4, 81, dtype=torch.float64).requires_grad_()
    alpha, beta = 1.01, 0.97
    u = alpha * (2 / torch.pi) ** 0.5 * (h + beta * 0.044715 * h**3)
    written = {
        "gelu": 0.5 * h * (1 + torch.erf(alpha * h / 2**0.5)),
        "gelu_tanh": 0.5 * h * (1 + torch.tanh(u)),
    }
    for kind, value in written.items():
        (first,) = torch.autograd.grad(value.sum(), h, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), h)
        got = derivatives(Activation(kind=kind, alpha=alpha, beta=beta), h.detach())
        for mine, want in zip(got, (value, first, second), strict=True):
            torch.testing.assert_close(mine, want.detach(), rtol=1e-10, atol=1e-13)


def test_an_unknown_kind_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        derivatives(Activation(kind="relu"), torch.zeros(1))
