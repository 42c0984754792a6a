"""Products with D (H + μI) D."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from wsb_engine.curvature.products.scaled import Diagonal, ScaledProduct


def test_several_columns_are_shifted_as_each_of_them() -> None:
    generator = torch.Generator().manual_seed(0)
    H, V = (torch.randn(5, size, generator=generator, dtype=torch.float64) for size in (5, 3))
    s, shift = torch.rand(5, generator=generator, dtype=torch.float64), 0.7

    class Dense:
        objective: Any = SimpleNamespace(parameters=5, dtype=torch.float64, device=torch.device("cpu"))
        columns = 5

        def __call__(self, columns: Tensor) -> Tensor:
            return H @ columns

    dense: Any = Dense()
    image = ScaledProduct(dense, Diagonal(s, shift=shift))(V)
    want = torch.diag(s) @ (H + shift * torch.eye(5, dtype=torch.float64)) @ torch.diag(s) @ V
    torch.testing.assert_close(image, want, rtol=1e-14, atol=1e-14)
