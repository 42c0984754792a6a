"""Per-sample quantities of a smooth MLP: what mathematics.md section 3 is built from.

Layers are numbered from 0 here: layer l maps a[l] to h_l = W[l] a[l] + b[l], and a[l+1] = φ_l(h_l). Symbols:

    phi1, phi2   φ_l′(h_l), φ_l″(h_l)                    (B, d_l)
    delta[l]     δ_l = ∂ℓ/∂h_l                           (B, d_l)
    A[l, k]      ∂δ_k/∂h_l, kept as its transpose        (B, d_k, d_l)
    J[l, k]      ∂a_k/∂h_l (B_lk there), transposed      (B, d_{k−1}, d_l),  for l < k − 1

Transposed storage lets each step of the recursion be one matrix product over all samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from wsb_engine.curvature.closed_form.activations import derivatives
from wsb_engine.curvature.losses import Loss, LossDerivatives
from wsb_engine.model import MLP, Activation, Tensors


@dataclass(frozen=True)
class Layer:
    """One affine layer in the working dtype; flags mark which of its tensors are differentiated."""

    name: str
    W: Tensor
    """(d_out, d_in)"""
    b: Tensor | None
    """(d_out,)"""
    learns_weight: bool
    learns_bias: bool

    @property
    def d_out(self) -> int:
        return int(self.W.shape[0])

    @property
    def d_in(self) -> int:
        return int(self.W.shape[1])

    @property
    def width(self) -> int:
        """Number of columns of ã: the learned entries of one row of [W b]."""
        return self.d_in * self.learns_weight + self.learns_bias

    @property
    def parameters(self) -> int:
        return self.d_out * self.width

    def augmented(self, a: Tensor) -> Tensor:
        """Return ã, (B, width)."""
        parts = [a] if self.learns_weight else []
        if self.learns_bias:
            parts.append(torch.ones_like(a[:, :1]))
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]


@dataclass(frozen=True)
class Network:
    """An MLP with its tensors, and the loss of its logits."""

    layers: tuple[Layer, ...]
    activations: tuple[Activation, ...]
    loss: Loss
    scale: float = 1.0
    """A power of four that multiplies ∂ℓ/∂z and S before they are cast to the working dtype, and so H."""

    @property
    def classes(self) -> int:
        return self.layers[-1].d_out


def network(mlp: MLP, parameters: Tensors, selected: frozenset[str], loss: Loss, scale: float = 1.0) -> Network:
    """Lay the named tensors out as [d_out, d_in] layers.

    Args:
        mlp: Structure of the network.
        parameters: Tensors in the working dtype, on the working device.
        selected: Names of those that are differentiated.
        loss: The loss of the logits.
        scale: Scale of H, a power of four.
    """
    layers = []
    for dense in mlp.layers:
        stored = parameters[dense.weight]
        layers.append(
            Layer(
                name=dense.weight,
                W=stored.T.contiguous() if dense.transposed else stored,
                b=None if dense.bias is None else parameters[dense.bias].reshape(-1),
                learns_weight=dense.weight in selected,
                learns_bias=dense.bias is not None and dense.bias in selected,
            )
        )
    return Network(tuple(layers), mlp.activations, loss, scale)


@dataclass(frozen=True)
class Passes:
    """One forward and one backward pass over B samples; lists are indexed by layer."""

    a: list[Tensor]
    phi1: list[Tensor]
    phi2: list[Tensor]
    delta: list[Tensor]
    z: Tensor
    loss: LossDerivatives
    """At z, without the scale."""


def forward_backward(net: Network, a0: Tensor, y: Tensor) -> Passes:
    """Compute the forward and backward quantities.

    Args:
        net: The network.
        a0: (B, d_0).
        y: (B, …) targets of the network's loss.
    """
    a, phi1, phi2 = [a0], [], []
    h = a0
    for index, layer in enumerate(net.layers):
        h = a[-1] @ layer.W.T
        if layer.b is not None:
            h = h + layer.b
        if index < len(net.activations):
            value, first, second = derivatives(net.activations[index], h)
            a.append(value)
            phi1.append(first)
            phi2.append(second)
    at = net.loss.derivatives(h, y)
    delta = [(net.scale * at.gradient).to(h.dtype)]
    for index in range(len(net.layers) - 2, -1, -1):
        delta.insert(0, (delta[0] @ net.layers[index + 1].W) * phi1[index])
    return Passes(a, phi1, phi2, delta, h, at)


def last_hidden_factor(net: Network, passes: Passes) -> Tensor:
    """Return Rᵀ of the last hidden layer, (B, C, d): A = R Rᵀ + diag(v), from S = FᵀF."""
    factor = math.sqrt(net.scale) * passes.loss.factor_times(net.layers[-1].W.double())
    return factor.to(passes.z.dtype) * passes.phi1[-1].unsqueeze(1)


def diagonal_term(net: Network, passes: Passes, l: int) -> Tensor:
    """Return v_l = φ_l″ ⊙ W_{l+1}ᵀ δ_{l+1}, (B, d_l)."""
    return passes.phi2[l] * (passes.delta[l + 1] @ net.layers[l + 1].W)


def step_down(net: Network, passes: Passes, l: int, block: Tensor) -> Tensor:
    """Return (D_l W_{l+1}ᵀ X)ᵀ from Xᵀ = ``block`` (B, m, d_{l+1}): the recursion that A and J share."""
    return (block @ net.layers[l + 1].W) * passes.phi1[l].unsqueeze(1)


def square_blocks(net: Network, passes: Passes, lowest: int) -> dict[int, Tensor]:
    """Return A_ll for l = lowest..L−1, each (B, d_l, d_l) and symmetric."""
    last = len(net.layers) - 1
    blocks = {last: (net.scale * passes.loss.curvature()).to(passes.z.dtype)}
    for index in range(last - 1, lowest - 1, -1):
        half = step_down(net, passes, index, blocks[index + 1])
        square = step_down(net, passes, index, half.transpose(1, 2))
        square.diagonal(dim1=1, dim2=2).add_(diagonal_term(net, passes, index))
        blocks[index] = square
    return blocks
