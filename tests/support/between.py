"""A small module around a function that is tested."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Between(nn.Module):
    """A function between two layers."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.function = nn.Linear(4, 6), nn.Linear(6, 3), function

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.second(self.function(self.first(x)))
        return z
