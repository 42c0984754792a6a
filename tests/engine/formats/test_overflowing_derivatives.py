"""Activations whose second derivative torch computes by e^x have one for any pre-activation, in each format."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from support import pt2
from support.between import Between
from support.eager import eager_hessian
from support.forms import crossed, full
from torch import Tensor, nn
from torch.nn import functional as F

import wsb_engine as wsb


def steep(function: Callable[[Tensor], Tensor]) -> nn.Module:
    return Between(lambda h: function(4 * h) / 100).double().eval()


def softplus(h: Tensor) -> Tensor:
    """Without overflow, and smooth but at 0."""
    return torch.relu(h) + torch.log1p(torch.exp(-h.abs()))


def in_place(function: Callable[..., Tensor], h: Tensor) -> Tensor:
    """Run it for what it does to its argument."""
    changed = h.clone()
    function(changed, inplace=True)
    return changed


FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "mish": (F.mish, lambda h: h * torch.tanh(softplus(h))),
    "mish, in place": (lambda h: in_place(F.mish, h), lambda h: h * torch.tanh(softplus(h))),
    "logaddexp": (lambda h: torch.logaddexp(h, torch.zeros_like(h)), softplus),
    "logaddexp of a row": (lambda h: torch.logaddexp(h, 0 * h[:, :1]), softplus),
    "logaddexp of opposites": (lambda h: torch.logaddexp(h, -h), lambda h: h.abs() + softplus(-2 * h.abs())),
}


def of_module(module: nn.Module, x: Tensor, folder: Path) -> wsb.Classifier:
    return wsb.from_module(module)


def of_torchscript(module: nn.Module, x: Tensor, folder: Path) -> wsb.Classifier:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(module, x[:2], check_trace=False), buffer)  # type: ignore[no-untyped-call]
    return load(buffer.getvalue(), folder / "model.pt")


def of_program(module: nn.Module, x: Tensor, folder: Path) -> wsb.Classifier:
    return load(pt2.exported(module, x[:2], free=True), folder / "model.pt2")


def load(data: bytes, path: Path) -> wsb.Classifier:
    path.write_bytes(data)
    return wsb.load_model(path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("scale", [full(1.0), 300.0])
@pytest.mark.parametrize(("name", "source"), crossed(FUNCTIONS, [of_module, of_torchscript, of_program]))
def test_an_activation_has_a_second_derivative_wherever_it_is(
    name: str, source: Callable[[nn.Module, Tensor, Path], wsb.Classifier], scale: float, tmp_path: Path
) -> None:
    function, stable = FUNCTIONS[name]
    # A factor of 300 brings some arguments beyond ±709, where e^x overflows.
    x, y = scale * np.random.default_rng(0).normal(size=(12, 4)), np.arange(12) % 3
    module, oracle = steep(function), steep(stable)
    options = wsb.Options(dtype="float64", moments="none", device="cpu")
    report = wsb.analyze(source(module, torch.from_numpy(x), tmp_path), wsb.Batch(x, y), options)
    truth = float(torch.linalg.eigvalsh(eager_hessian(oracle, torch.from_numpy(x), torch.from_numpy(y)))[-1])
    assert report.enclosure is not None
    found = report.enclosure.lambda_max
    assert found.lower <= truth * (1 + 1e-13)
    assert truth * (1 - 1e-13) <= found.upper
    assert found.relative_gap is not None
    assert found.relative_gap <= options.relative_gap
