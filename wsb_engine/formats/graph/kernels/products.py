"""Products of more than two tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def bilinear(input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return Σ_ij x_i W_oij y_j + b_o over the last axes, as ``torch.nn.functional.bilinear``."""
    product = torch.einsum("...i,oij,...j->...o", input1, weight, input2)
    return product if bias is None else product + bias


def trilinear(
    first: Tensor,
    second: Tensor,
    third: Tensor,
    expanded: tuple[Sequence[int], Sequence[int], Sequence[int]],
    summed: Sequence[int],
) -> Tensor:
    """Return the sum over some axes of the product of three tensors.

    Args:
        first: A factor.
        second: A factor.
        third: A factor.
        expanded: For each factor the axes of the product that it lacks.
        summed: Axes of the product that are summed over.
    """
    rank = first.ndim + len(expanded[0])

    def axes(left_out: Sequence[int]) -> list[int]:
        return [axis for axis in range(rank) if axis not in {each % rank for each in left_out}]

    one, two, three = map(axes, expanded)
    return torch.einsum(first, one, second, two, third, three, axes(summed))
