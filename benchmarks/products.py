"""Compare Hessian-vector products with curvlinops in one run: same network, batch and vectors, in float32.

./scripts/peers && PYTHONPATH=.peers .venv/bin/python benchmarks/products.py
"""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from harness import Row, alternate, milliseconds, ratio, show
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

import wsb_engine as wsb
from wsb_engine.analysis.monitor import Monitor
from wsb_engine.analysis.problem import pose
from wsb_engine.curvature.products.autodiff import HessianProduct

BLOCK = 16


class Encoder(nn.Module):
    """Two encoder layers over a sequence, followed by the mean."""

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
    """How many times faster than curvlinops a single product must be."""
    block: float | None = 1.0
    """The same for blocks of 16; None if there is no target."""


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
    """Return the engine's product by number of columns, chosen as in an analysis."""
    options = wsb.Options(dtype="float32", device="cpu")
    problem = pose(wsb.from_module(module), wsb.Batch(x.numpy(), y.numpy()), options, Monitor(options, None, 0.0))
    return problem.hessian_product


def theirs(module: nn.Module, x: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
    from curvlinops import HessianLinearOperator

    parameters = list(module.parameters())
    operator = HessianLinearOperator(module, nn.CrossEntropyLoss(), parameters, [(x, y)], check_deterministic=False)

    def product(V: Tensor) -> Tensor:
        # torch has no forward derivative of its fused attention on a CPU; our product does the same.
        with sdpa_kernel(SDPBackend.MATH):
            image: Tensor = operator @ V
        return image

    return product


def reference(case: Case, y: Tensor, V: Tensor) -> Tensor:
    """Compute H·V in float64 by differences of gradients, which is independent of forward-mode derivatives."""
    module = copy.deepcopy(case.module).double()
    point = {name: tensor.detach() for name, tensor in module.named_parameters()}
    sizes, x = [tensor.numel() for tensor in point.values()], case.x.double()

    def gradient(shift: Tensor) -> Tensor:
        pieces = zip(point.items(), shift.split(sizes), strict=True)
        moved = {name: (tensor + piece.view_as(tensor)).requires_grad_() for (name, tensor), piece in pieces}
        loss = nn.functional.cross_entropy(functional_call(module, moved, (x,)), y)
        return torch.cat([part.reshape(-1) for part in torch.autograd.grad(loss, list(moved.values()))])

    def column(v: Tensor) -> Tensor:
        step = 1e-3 / torch.linalg.vector_norm(v)
        return (gradient(step * v) - gradient(-step * v)) / (2 * step)

    return torch.stack([column(v) for v in V.double().T], dim=1)


def distance(image: Tensor, exact: Tensor) -> float:
    """Return the relative error of the whole block."""
    difference = image.double().reshape(exact.shape) - exact
    return float(torch.linalg.vector_norm(difference) / torch.linalg.vector_norm(exact))


def compare(case: Case, *, repeats: int) -> Iterator[Row]:
    torch.manual_seed(1)
    case.module.eval()
    y = torch.randint(0, 10, (len(case.x),))
    product, peer = ours(case.module, case.x, y), theirs(case.module, case.x, y)
    for columns, wanted in ((1, case.single), (BLOCK, case.block)):
        V = torch.randn(sum(p.numel() for p in case.module.parameters()), columns)
        operator = product(columns)
        exact = reference(case, y, V)
        mine, other = (distance(image, exact) for image in (operator(V), peer(V.squeeze(1) if columns == 1 else V)))
        assert mine < 1e-4, f"{case.name}: our product is off by {mine}"
        seconds = alternate(
            {
                "ours": lambda V=V, operator=operator: operator(V),
                "curvlinops": lambda V=V, columns=columns: peer(V.squeeze(1) if columns == 1 else V),
            },
            repeats=repeats if columns == 1 else 5,
            # Lanczos runs call one after another.
            before=1 if columns == 1 else 0,
        )
        faster = ratio(seconds, "ours", "curvlinops")
        yield Row(
            f"H·{'v' if columns == 1 else f'V of {columns} columns'}, {case.name}",
            f"{milliseconds(seconds['ours'])} (off by {mine:.0e}), "
            f"curvlinops {milliseconds(seconds['curvlinops'])} (off by {other:.0e}): {faster:.2f} ×",
            "" if wanted is None else f"at least {wanted:g} ×",
            None if wanted is None else faster >= wanted,
        )


def rows(*, repeats: int = 15) -> Iterator[Row]:
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", message="Attempted to insert a get_attr Node")
    for case in cases():
        yield from compare(case, repeats=repeats)


if __name__ == "__main__":
    sys.exit(not show(rows()))
