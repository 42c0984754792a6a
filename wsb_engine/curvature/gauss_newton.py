"""Trace of the generalised Gauss-Newton matrix G = Σ_s w_s J_sᵀ S_s J_s, J_s = ∂z_s/∂θ (Schraudolph 2002).

H = G + Σ_s w_s Σ_c g_c ∇²z_c: tr G is the part of t that the loss's own curvature makes, the rest is the network's.
With S = FᵀF, tr G = Σ_s w_s ‖F_s J_s‖_F², where F_s J_s is the Jacobian of F_s z_s with F_s held fixed.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor
from torch.func import jacrev, vmap

from wsb_engine import devices
from wsb_engine.curvature.closed_form.mlp import Network, forward_backward, step_down
from wsb_engine.curvature.closed_form.sums import TileSource
from wsb_engine.curvature.products.autodiff import Objective
from wsb_engine.memory import ran_out
from wsb_engine.model import Tensors

WORK = 4 << 30
"""Entries of all samples' Jacobians beyond which a general model's trace is not computed."""
ROWS = 64
"""Samples of an MLP at a time, on a CPU."""
HELD = 4
"""Arrays of the size of a layer's factors that are held at once, in float64."""
ENTRIES = 1 << 24
"""Of Jacobians held at a time, for other models."""


def mlp_trace(net: Network, source: TileSource, weights: Tensor, *, rows: int = ROWS) -> float | None:
    """Compute tr G of an MLP, by one backward recursion of F J for each sample.

    Args:
        net: The network, in the working dtype.
        source: Gives tiles of a_0 and targets.
        weights: (N,) float64, of sum 1.
        rows: Samples at a time.

    Returns:
        None if the loss is not convex.
    """
    if not net.loss.convex:
        return None
    total = weights.new_zeros(())
    for start in range(0, len(weights), rows):
        w = weights[start : start + rows]
        passes = forward_backward(net, *source(start, start + len(w)))
        factor = (math.sqrt(net.scale) * passes.loss.factor()).to(passes.z.dtype)
        for l in range(len(net.layers) - 1, -1, -1):
            if net.layers[l].width:
                norm = net.layers[l].augmented(passes.a[l]).double().square().sum(dim=1)
                total += (w * norm * factor.double().square().sum(dim=(1, 2))).sum()
            if l > 0:
                factor = step_down(net, passes, l - 1, factor)
    return float(total)


def rows_of(net: Network, device: torch.device, memory: int) -> int:
    """Return the samples of an MLP to take at a time: on a GPU as many as fit in some memory."""
    if device.type == "cpu":
        return ROWS
    widest = max(max(layer.d_in, layer.d_out) for layer in net.layers)
    return max(1, memory // (HELD * 8 * net.classes * widest))


def general_trace(objective: Objective, classes: int) -> float | None:
    """Compute tr G of any logits from the Jacobians of single samples.

    Returns:
        None if the loss is not convex, the Jacobians are too large, or torch can't evaluate single samples.
    """
    size = objective.parameters * classes
    samples = len(objective.targets.weights)
    if not objective.loss.convex or objective.coupled or size * samples > WORK or size > ENTRIES:
        return None
    total = torch.zeros((), dtype=torch.float64, device=objective.device)
    for rows in objective.chunks(max(1, ENTRIES // size)):
        inputs = objective.chunk_inputs(rows)
        with torch.no_grad():
            z = objective.logits(rows)
        try:
            squares = vmap(partial(_square, objective))(inputs, z, objective.targets.rows(rows))
        except (RuntimeError, NotImplementedError) as error:
            if ran_out(error) or devices.has_failed(error):
                raise
            return None
        total += (objective.targets.weights[rows] * squares.double()).sum()
    return float(total)


def _square(objective: Objective, inputs: Tensors, z: Tensor, y: Tensor) -> Tensor:
    """Compute ‖F J‖_F² of one sample at its logits z (C,); nothing has a sample axis."""
    batch = {name: tensor.unsqueeze(0) for name, tensor in inputs.items()}
    at = objective.loss.derivatives(z.unsqueeze(0), y.unsqueeze(0))

    def weighted(selected: Tensors) -> Tensor:
        logits = objective.function({**objective.fixed, **selected}, batch)[0].double()
        return math.sqrt(objective.scale) * at.factor_times(logits.unsqueeze(1))

    jacobian = jacrev(weighted)(dict(objective.selected))
    return sum((part.square().sum() for part in jacobian.values()), z.new_zeros((), dtype=torch.float64))
