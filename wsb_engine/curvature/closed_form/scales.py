"""Scales of an MLP's parameters: D of D H D, layer by layer (mathematics.md, section 13)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from wsb_engine.model import MLP


@dataclass(frozen=True)
class LayerScale:
    """Scales of one layer's parameters; None for a tensor that is not differentiated."""

    W: Tensor | None
    """(d_out, d_in)"""
    b: Tensor | None
    """(d_out,)"""


def layer_scales(mlp: MLP, scales: Mapping[str, Tensor]) -> tuple[LayerScale, ...]:
    """Lay the scales of named tensors out as the layers' tensors are.

    Args:
        mlp: Structure of the network.
        scales: Scales by name of a differentiated tensor, each of its shape.
    """
    found = []
    for dense in mlp.layers:
        W, b = scales.get(dense.weight), None if dense.bias is None else scales.get(dense.bias)
        W = W.T.contiguous() if W is not None and dense.transposed else W
        found.append(LayerScale(W, None if b is None else b.reshape(-1)))
    return tuple(found)
