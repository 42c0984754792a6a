"""Hessian-vector products beside curvlinops, in one run: the same network, batch and vectors, in float32.

./scripts/peers && PYTHONPATH=.peers .venv/bin/python benchmarks/products.py
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from harness import Row, alternate, finish, machine, milliseconds, ratio
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import wsb_engine as wsb
from wsb_engine.curvature.hessian_product import HessianProduct
from wsb_engine.problem import pose
from wsb_engine.run import Run

BLOCK = 16


class Encoder(nn.Module):
    """Two encoder layers over a sequence, then the mean."""

    def __init__(self, features: int, width: int, classes: int) -> None:
        super().__init__()
        self.embed = nn.Linear(features, width)
        layer = nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.classify = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.encoder(self.embed(x)).mean(dim=1))


@dataclass(frozen=True)
class Case:
    name: str
    module: nn.Module
    x: Tensor
    single: float
    """How many times faster than curvlinops' a single product has to be."""
    block: float | None = 1.0
    """The same for blocks of 16; None where none is claimed."""


def cases() -> Iterator[Case]:
    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Linear(784, 128), nn.Tanh(), nn.Linear(128, 10))
    yield Case("784-128-10 tanh, N = 1000", mlp, torch.rand(1000, 784), 3.5)
    convolutions = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(32 * 7 * 7, 10),
    )  # fmt: skip
    yield Case("two convolutions, N = 256", convolutions, torch.rand(256, 1, 28, 28), 3.0)
    yield Case("two-layer encoder, N = 128", Encoder(16, 64, 10), torch.randn(128, 24, 16), 3.0)


def ours(module: nn.Module, x: Tensor, y: Tensor) -> Callable[[int], HessianProduct]:
    """The engine's product for so many columns, chosen as in an analysis."""
    options = wsb.Options(dtype="float32", device="cpu")
    problem = pose(wsb.from_module(module), wsb.Batch(x.numpy(), y.numpy()), options, Run(options, None, 0.0))
    return problem.hessian_product


def theirs(module: nn.Module, x: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
    from curvlinops import HessianLinearOperator

    parameters = list(module.parameters())
    operator = HessianLinearOperator(module, nn.CrossEntropyLoss(), parameters, [(x, y)], check_deterministic=False)

    def product(V: Tensor) -> Tensor:
        # torch has no forward derivative of its fused attention on a CPU; ours sets the same.
        with sdpa_kernel(SDPBackend.MATH):
            image: Tensor = operator @ V
        return image

    return product


def compare(case: Case, *, repeats: int) -> Iterator[Row]:
    torch.manual_seed(1)
    case.module.eval()
    y = torch.randint(0, 10, (len(case.x),))
    product, peer = ours(case.module, case.x, y), theirs(case.module, case.x, y)
    for columns, wanted in ((1, case.single), (BLOCK, case.block)):
        V = torch.randn(sum(p.numel() for p in case.module.parameters()), columns)
        operator = product(columns)
        mine = operator(V).float()
        other = peer(V.squeeze(1) if columns == 1 else V).reshape(mine.shape)
        error = float(torch.linalg.vector_norm(mine - other) / torch.linalg.vector_norm(other))
        assert error < 1e-4, f"{case.name}: the products differ by {error}"
        seconds = alternate(
            {
                "ours": lambda V=V, operator=operator: operator(V),
                "curvlinops": lambda V=V, columns=columns: peer(V.squeeze(1) if columns == 1 else V),
            },
            repeats=repeats if columns == 1 else max(repeats // 2, 5),
        )
        faster = ratio(seconds, "ours", "curvlinops")
        yield Row(
            f"H·{'v' if columns == 1 else f'V of {columns} columns'}, {case.name}",
            f"{milliseconds(seconds['ours'])}, curvlinops {milliseconds(seconds['curvlinops'])}: {faster:.2f} ×",
            "" if wanted is None else f"at least {wanted:g} ×",
            None if wanted is None else faster >= wanted,
        )


def rows(*, repeats: int = 11) -> Iterator[Row]:
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", message="Attempted to insert a get_attr Node")
    for case in cases():
        yield from compare(case, repeats=repeats)


if __name__ == "__main__":
    print(machine())
    found = []
    for row in rows():
        print(row, flush=True)
        found.append(row)
    finish(found)
