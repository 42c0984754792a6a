"""Running error analysis of an MLP's Hessian in float64: a proof of what rounding did (mathematics.md, section 11).

Each kept quantity has a radius: a bound on its distance from the exact one, at the parameters and inputs as given.
Layers count from 0; u is the unit roundoff, γ_n = nu/(1 − nu), capitals are value plus radius, and the elementary
functions are right to 4 ulp. With R{h_l} = J_l v for a direction v, one sample's Hessian is

    h = J_Lᵀ S J_L + Σ_l J_lᵀ diag(b_l) J_l + Σ_l (T_l + T_lᵀ),     b_l = φ_l″ ⊙ W_{l+1}ᵀ δ_{l+1},
    T_l: (V_l′ᵀ δ_l) · (φ_{l−1}′ ⊙ J_{l−1} v),

which MLPProduct evaluates. Row i of J_l is ã_l in block l, and Σ_j W_l[i,j] φ_{l−1}′[j] J_{l−1}[j] in the blocks below,
whose norm is at most

    ρ_l[i] = ‖ã_{l−1}‖ √(Σ_j W_l[i,j]² φ_{l−1}′[j]²) + Σ_j |W_l[i,j]| φ_{l−1}′[j] ρ_{l−1}[j],     ρ_0 = 0,

since the rows' own parts are orthogonal. Radii of rows follow by the same rules. What rounding does to g and S is the
loss's to bound (``LossDerivatives.rounding``). No matrix of a layer's width squared is formed: a pass costs as much as
two or three products.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wsb_engine.curvature.closed_form.layout import Layout, triangle
from wsb_engine.curvature.closed_form.mlp import Layer, Network, Passes, forward_backward
from wsb_engine.curvature.closed_form.scales import LayerScale
from wsb_engine.curvature.closed_form.sums import TileSource
from wsb_engine.curvature.losses.base import ELEMENTARY, UNIT, LossRounding

ENTRIES = 1 << 22
"""Most entries of a tile: samples times the widest layer."""
OF_INPUTS, OF_OUTPUTS = 6, 40
"""Arrays of the size of a tile's inputs, and of the outputs of all its layers, that are held at once."""
SCALING = 8
"""Roundings that multiplying by D on both sides adds to a product, with room for those of the closed form's factors."""
INFLATION = 1 + 1e-8
"""Covers the rounding of the radii: sums of some thousand terms that are not negative."""


@dataclass(frozen=True)
class RunningError:
    """Bounds on the rounding errors of H; in the units of the network's scaled H."""

    operator: float
    """Bound on ‖H_kept − H‖_F, where H_kept results exactly from the quantities that a product keeps."""
    absolute: float
    """Σ_s w_s ‖|h_s|‖_F, with the absolute value of every term of h_s."""
    chain: int
    """Number of roundings along the longest path through a product."""

    @property
    def product(self) -> float:
        """‖fl(H_kept v) − H_kept v‖ ≤ this · ‖v‖, for any order of summation, with or without fused operations."""
        return gamma(self.chain) * self.absolute

    def moments(self, net: Network, layout: Layout, samples: int) -> float:
        """Return γ such that the closed form's q is off by at most γ · absolute², and t by √P · γ · absolute.

        Args:
            net: The network.
            layout: Layout of the closed form's sums.
            samples: N.
        """
        sums = 2 * self.chain + 4 * max(layer.d_in for layer in net.layers) + 4 * layout.tile
        tiles = math.ceil(samples / layout.tile)
        sums += triangle(tiles) + samples
        for (l, k), form in layout.forms.items():
            row, column = net.layers[l], net.layers[k]
            if form == "block":
                sums += row.parameters * column.parameters
            else:
                sums += row.d_out * max(column.d_out, column.d_in) + net.classes**2 * row.d_out
        return gamma(sums)


def gamma(count: float) -> float:
    """Return γ_n; inf if n is so large that nothing is bounded."""
    return count * UNIT / (1 - count * UNIT) if count * UNIT < 0.5 else math.inf


@dataclass(frozen=True)
class _Radii:
    """Radii of φ, φ′ and φ″ of an activation at h with radius rh."""

    value: Tensor
    first: Tensor
    second: Tensor


_Rule = Callable[[Tensor, Tensor, Tensor, Tensor], _Radii]
"""(radius of h, φ, φ′, φ″) → radii."""


def _identity(rh: Tensor, a: Tensor, first: Tensor, second: Tensor) -> _Radii:
    return _Radii(rh, torch.zeros_like(rh), torch.zeros_like(rh))


def _tanh(rh: Tensor, a: Tensor, first: Tensor, second: Tensor) -> _Radii:
    """|d ln φ′/dh| = 2|tanh h| ≤ 2, so φ′ within rh is φ′ e^{±2 rh}; φ″ = −2 a φ′."""
    growth = torch.expm1(2 * rh)
    ra = first * (1 + growth) * rh + ELEMENTARY * UNIT * a.abs()
    rf = first * (growth + 2 * ELEMENTARY * UNIT)
    return _Radii(ra, rf, 2 * (first * ra + a.abs() * rf + ra * rf) + 6 * UNIT * second.abs())


def _sigmoid(rh: Tensor, a: Tensor, first: Tensor, second: Tensor) -> _Radii:
    """|d ln φ′/dh| = |1 − 2σ| ≤ 1; φ″ = φ′ (σ(−h) − σ(h)), whose bracket rounds by units of 1."""
    growth = torch.expm1(rh)
    ra = first * (1 + growth) * rh + 2 * ELEMENTARY * UNIT * a
    rf = first * (growth + 4 * ELEMENTARY * UNIT)
    return _Radii(ra, rf, rf + (first + rf) * (2 * ra + 4 * ELEMENTARY * UNIT))


def _softplus(rh: Tensor, a: Tensor, first: Tensor, second: Tensor) -> _Radii:
    """φ′ = σ(h) with |d ln φ′/dh| = σ(−h) ≤ 1; φ″ = σ(h) σ(−h) with |d ln φ″/dh| ≤ 1."""
    growth = torch.expm1(rh)
    ra = first * (1 + growth) * rh + 2 * ELEMENTARY * UNIT * a
    rf = first * (growth + 2 * ELEMENTARY * UNIT)
    return _Radii(ra, rf, second * (growth + 4 * ELEMENTARY * UNIT))


_RULES: dict[str, _Rule] = {"identity": _identity, "tanh": _tanh, "sigmoid": _sigmoid, "softplus": _softplus}
"""Activations whose φ′ has no zeros."""


def running_error(
    net: Network,
    source: TileSource,
    weights: Tensor,
    *,
    memory: int,
    scales: Sequence[LayerScale] | None = None,
) -> RunningError | None:
    """Bound the rounding errors of H, or of D H D, by one pass over the samples.

    Args:
        net: The network, in float64.
        source: Gives tiles of a_0, exact, and targets.
        weights: (N,) float64, of sum 1.
        memory: Bytes to work in; a tile has one sample at least.
        scales: D of D H D, layer by layer; None for H. Every row of a layer then has a norm of its part of D ã.

    Returns:
        None if no radii are known for an activation or the loss, or in float32.
    """
    if net.layers[0].W.dtype != torch.float64 or any(each.kind not in _RULES for each in net.activations):
        return None
    widest = max(max(layer.d_in, layer.d_out) for layer in net.layers)
    held = OF_INPUTS * net.layers[0].d_in + OF_OUTPUTS * sum(layer.d_out for layer in net.layers)
    rows = max(1, min(ENTRIES // widest, memory // (torch.float64.itemsize * held)))
    samples = len(weights)
    operator, absolute = 0.0, 0.0
    for start in range(0, samples, rows):
        a0, y = source(start, min(start + rows, samples))
        sample = _Sample(net, forward_backward(net, a0, y), scales)
        bounds = sample.passes.loss.rounding(sample.passes.z, y.double(), sample.rz)
        if bounds is None:
            return None
        radius, size = sample.errors(bounds)
        w = weights[start : start + len(radius)]
        operator += float((w * radius).sum())
        absolute += float((w * size).sum())
    chain = sum(layer.d_in + layer.d_out + 8 for layer in net.layers) + 2 * net.classes + samples + 40
    chain += 0 if scales is None else SCALING
    # The weights are quotients by sums of N numbers.
    divided = gamma(net.loss.sums * samples + 4) * absolute
    return RunningError(_upwards(operator + divided), _upwards(absolute), chain)


def _upwards(value: float) -> float:
    return math.inf if math.isnan(value) else INFLATION * value


class _Sample:
    """Radii of some samples, one row per sample."""

    def __init__(self, net: Network, passes: Passes, scales: Sequence[LayerScale] | None) -> None:
        self.net, self.passes = net, passes
        self._squares = None if scales is None else [_Squares.of(scale) for scale in scales]
        self._forward()

    def errors(self, bounds: LossRounding) -> tuple[Tensor, Tensor]:
        """Return ‖h_kept − h‖_F and ‖|h|‖_F of each sample, (B,), from bounds on the loss's rounding at ``rz``."""
        self._backward(bounds)
        radius, size = self._top(bounds)
        last = len(self.net.layers) - 1
        for l in range(last):
            more, norm = self._bend(l)
            radius, size = radius + more, size + norm
        for l in range(1, last + 1):
            if self.net.layers[l].learns_weight:
                more, norm = self._mixed(l)
                radius, size = radius + math.sqrt(2) * more, size + math.sqrt(2) * norm
        return radius, size

    def _forward(self) -> None:
        """Compute the radii of a and φ, and the norms of rows of J with their radii, layer by layer."""
        net, passes = self.net, self.passes
        zero = torch.zeros_like(passes.a[0])
        ra = zero
        self.own, self.rown = [], []
        self.rho, self.rrho = [], []
        self.first, self.rfirst, self.second, self.rsecond = [], [], [], []
        rho = rrho = passes.z.new_zeros(len(passes.z), net.layers[0].d_out)
        for l, layer in enumerate(net.layers):
            W, a = layer.W.abs(), passes.a[l]
            size = (a.abs() + ra) @ W.T + (0 if layer.b is None else layer.b.abs())
            rh = ra @ W.T + gamma(layer.d_in + 2) * size
            if l > 0:
                rho, rrho = self._rows(layer, l)
            self.rho.append(rho)
            self.rrho.append(rrho)
            self.own.append(self._own_norm(layer, l, a.abs() + ra))
            self.rown.append(self._weighted_norm(layer, l, ra))
            if l == len(net.activations):
                self.rz = rh
                return
            value = passes.a[l + 1]
            radii = _RULES[net.activations[l].kind](rh, value, passes.phi1[l], passes.phi2[l])
            ra = radii.value
            self.first.append(passes.phi1[l] + radii.first)
            self.rfirst.append(radii.first)
            self.second.append(passes.phi2[l].abs() + radii.second)
            self.rsecond.append(radii.second)

    def _rows(self, layer: Layer, l: int) -> tuple[Tensor, Tensor]:
        """Return ρ of layer l, and the radius of its rows below their own block."""
        W, squares = layer.W.abs(), layer.W.square()
        first, rfirst = self.first[l - 1], self.rfirst[l - 1]
        own, rown = self.own[l - 1], self.rown[l - 1]
        below, rbelow = self.rho[l - 1], self.rrho[l - 1]
        rho = _spread(own, first, squares) + (first * below) @ W.T
        moved = _spread(rown, first, squares) + _spread(own, rfirst, squares)
        return rho, moved + (rfirst * below + first * rbelow) @ W.T

    def _backward(self, bounds: LossRounding) -> None:
        """Compute the radii of δ and of b = φ″ ⊙ Wᵀδ."""
        net, passes, scale = self.net, self.passes, self.net.scale
        last = len(net.layers) - 1
        rg = scale * bounds.gradient
        self.delta, self.rdelta = [passes.delta[last].abs() + rg], [rg]
        self.bend: list[Tensor] = []
        self.rbend: list[Tensor] = []
        for l in range(last - 1, -1, -1):
            layer = net.layers[l + 1]
            W = layer.W.abs()
            size = self.delta[0] @ W
            rc = self.rdelta[0] @ W + gamma(layer.d_out + 2) * size
            c = (passes.delta[l + 1] @ layer.W).abs() + rc
            b = self.second[l] * c
            self.bend.insert(0, b * (1 + 2 * UNIT))
            self.rbend.insert(0, self.rsecond[l] * c + self.second[l] * rc + 2 * UNIT * b)
            rd = self.rfirst[l] * c + self.first[l] * rc + 2 * UNIT * self.first[l] * c
            self.delta.insert(0, passes.delta[l].abs() + rd)
            self.rdelta.insert(0, rd)

    def _top(self, bounds: LossRounding) -> tuple[Tensor, Tensor]:
        """Return the radius and the size of J_Lᵀ S J_L."""
        R = (self.own[-1].square() + self.rho[-1].square()).sqrt()
        dR = self.rown[-1] + self.rrho[-1]
        size, moved = bounds.norm(R, R), 2 * bounds.norm(dR, R)
        grown, total = 1 + bounds.curvature, self.net.scale * bounds.total
        return total * (bounds.curvature * size + grown * moved), total * grown * size

    def _bend(self, l: int) -> tuple[Tensor, Tensor]:
        """Return the radius and the size of J_lᵀ diag(b_l) J_l, by blocks of own and lower parameters."""
        b, rb, rho, rrho = self.bend[l], self.rbend[l], self.rho[l], self.rrho[l]
        own, rown = self.own[l], self.rown[l]
        size = _times(own.square(), b) + 2 * _times(own, b * rho) + (b * rho.square()).sum(dim=1)
        radius = _times(own.square(), rb) + 2 * _times(own * rown, b)
        radius = radius + 2 * (_times(own, rb * rho, b * rrho) + _times(rown, b * rho))
        return radius + (rb * rho.square() + 2 * b * rho * rrho).sum(dim=1), size

    def _mixed(self, l: int) -> tuple[Tensor, Tensor]:
        """Return the radius and the size of T_l."""
        first, rfirst = self.first[l - 1], self.rfirst[l - 1]
        R = (self.own[l - 1].square() + self.rho[l - 1].square()).sqrt()
        dR = self.rown[l - 1] + self.rrho[l - 1]
        delta, rdelta = self._column_norm(l, self.delta[l]), self._column_norm(l, self.rdelta[l])
        moved = _times(delta, rfirst * R, first * dR)
        return _times(rdelta, first * R) + moved, _times(delta, first * R)

    def _own_norm(self, layer: Layer, l: int, a: Tensor) -> Tensor:
        """Return ‖ã‖ of what each row of the layer learns: (B, 1) if it is the same for all of them, else (B, d)."""
        if self._squares is None:
            learned = a.square().sum(dim=1) * layer.learns_weight + float(layer.learns_bias)
            return learned.sqrt().unsqueeze(1)
        scale = self._squares[l]
        return (_rows_of(scale.W, a.square(), layer.d_out) + (0 if scale.b is None else scale.b)).sqrt()

    def _weighted_norm(self, layer: Layer, l: int, a: Tensor) -> Tensor:
        """Return the same of the weights alone."""
        if self._squares is None:
            return (_norm(a) * layer.learns_weight).unsqueeze(1)
        return _rows_of(self._squares[l].W, a.square(), layer.d_out).sqrt()

    def _column_norm(self, l: int, delta: Tensor) -> Tensor:
        """Return ‖δ‖ as each column of the layer's weights meets it: (B, 1), or (B, d_in)."""
        if self._squares is None:
            return _norm(delta).unsqueeze(1)
        squares = self._squares[l].W
        return _rows_of(None if squares is None else squares.T, delta.square(), self.net.layers[l].d_in).sqrt()


@dataclass(frozen=True)
class _Squares:
    """Squares of the scales of one layer."""

    W: Tensor | None
    b: Tensor | None

    @classmethod
    def of(cls, scale: LayerScale) -> _Squares:
        return cls(*(None if each is None else each.square() for each in (scale.W, scale.b)))


def _rows_of(squares: Tensor | None, x: Tensor, width: int) -> Tensor:
    """Return x Sᵀ, (B, width); 0 without S."""
    return x.new_zeros(len(x), width) if squares is None else x @ squares.T


def _spread(own: Tensor, first: Tensor, squares: Tensor) -> Tensor:
    """Return √(Σ_j W[i,j]² first[j]² own[j]²), (B, d)."""
    if own.shape[1] == 1:
        return own * (first.square() @ squares.T).sqrt()
    return ((own * first).square() @ squares.T).sqrt()


def _times(own: Tensor, *factors: Tensor) -> Tensor:
    """Return Σ ‖own ⊙ x‖ over the factors x, (B,)."""
    if own.shape[1] == 1:
        return own.squeeze(1) * sum((_norm(x) for x in factors[1:]), _norm(factors[0]))
    return sum((_norm(own * x) for x in factors[1:]), _norm(own * factors[0]))


def _norm(x: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x, dim=1)
    return norm
