"""Small networks with the Hessian of their loss, and its parts, by double backward of torch's own loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import wsb_engine as wsb

Criterion = Callable[[Tensor, Tensor], Tensor]
SAMPLES, FEATURES, CLASSES = 9, 4, 3


class General(nn.Module):
    """No MLP: its layers are modules within modules, and one is normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleDict({"first": nn.Linear(FEATURES, 5), "norm": nn.LayerNorm(5)})
        self.head = nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body["norm"](torch.tanh(self.body["first"](x))) + 0.1)


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 5), nn.Tanh(), nn.Linear(5, 4), nn.Softplus(), nn.Linear(4, CLASSES))


@dataclass(frozen=True)
class Known:
    """A network, its batch, and matrices in the order of its parameters, float64."""

    module: nn.Module
    batch: wsb.Batch
    hessian: Tensor
    gauss_newton: Tensor
    """The Hessian of the loss of linearised logits."""
    gradient: Tensor
    places: dict[str, Tensor]
    """Indices of each parameter's entries."""

    def analyze(self, **options: object) -> wsb.Report:
        return wsb.analyze(wsb.from_module(self.module), self.batch, wsb.Options(**options))

    def block(self, *names: str) -> Tensor:
        """Return the diagonal block of H that belongs to some parameters."""
        index = torch.cat([self.places[name] for name in names])
        return self.hessian[index][:, index]


def known(module: nn.Module, criterion: Criterion = cross_entropy, seed: int = 0, y: Tensor | None = None) -> Known:
    """Compute the matrices of a network on random samples."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double().eval()
    x = torch.randn(SAMPLES, FEATURES, generator=generator, dtype=torch.float64)
    y = torch.randint(CLASSES, (SAMPLES,), generator=generator) if y is None else y
    named = {name: each.detach() for name, each in module.named_parameters()}
    theta = torch.cat([each.reshape(-1) for each in named.values()])

    def logits(flat: Tensor) -> Tensor:
        pieces = flat.split([each.numel() for each in named.values()])
        values = {name: piece.view_as(named[name]) for name, piece in zip(named, pieces, strict=True)}
        z: Tensor = torch.func.functional_call(module, values, (x,))
        return z

    jacobian = torch.autograd.functional.jacobian(logits, theta)  # type: ignore[no-untyped-call]
    at = logits(theta)

    def linear(flat: Tensor) -> Tensor:
        return at + jacobian @ (flat - theta)

    H, G = (
        torch.autograd.functional.hessian(lambda flat, z=z: criterion(z(flat), y), theta)  # type: ignore[no-untyped-call]
        for z in (logits, linear)
    )
    gradient = torch.autograd.functional.jacobian(lambda flat: criterion(logits(flat), y), theta)  # type: ignore[no-untyped-call]
    places, start = {}, 0
    for name, each in named.items():
        places[name] = torch.arange(start, start + each.numel())
        start += each.numel()
    return Known(module, wsb.Batch(x, y), H, G, gradient, places)


@cache
def mlp(seed: int = 0) -> Known:
    torch.manual_seed(seed)
    return known(perceptron(), seed=seed)


@cache
def general(seed: int = 0) -> Known:
    torch.manual_seed(seed)
    return known(General(), seed=seed)


def largest(matrix: Tensor) -> float:
    """Return λ_max of a symmetric matrix."""
    return float(torch.linalg.eigvalsh(matrix)[-1])
