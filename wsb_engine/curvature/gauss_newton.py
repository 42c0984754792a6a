"""Trace of the generalised Gauss-Newton matrix G = Σ_s w_s J_sᵀ S_s J_s, J_s = ∂z_s/∂θ (Schraudolph 2002).

H = G + Σ_s w_s Σ_c g_c ∇²z_c: tr G is the part of t that the loss's own curvature makes, the rest is the network's.
With S = ℒ ℒᵀ, tr G = Σ_s w_s ‖ℒ_sᵀ J_s‖_F², and ℒᵀ z has the entries √p_j (z′_j − p·z′) with p held fixed, where z′ is
z less its largest entry if that one has more than half of the probability.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor
from torch.func import jacrev, vmap

from wsb_engine.curvature.closed_form.mlp import Network, passes, step_down
from wsb_engine.curvature.closed_form.sums import TileSource
from wsb_engine.curvature.loss import head
from wsb_engine.curvature.products.autodiff import Objective
from wsb_engine.memory import ran_out
from wsb_engine.model import Tensors

WORK = 4 << 30
"""Entries of all samples' Jacobians beyond which a general model's trace is not computed."""
ROWS = 64
"""Samples of an MLP at a time."""
ENTRIES = 1 << 24
"""Of Jacobians held at a time, for other models."""


def mlp_trace(net: Network, source: TileSource, weights: Tensor) -> float:
    """tr G of an MLP, by one backward recursion of ℒᵀJ for each sample.

    Args:
        net: The network, in the working dtype.
        source: Gives tiles of a_0 and targets.
        weights: (N,) float64, of sum 1.
    """
    total = weights.new_zeros(())
    for start in range(0, len(weights), ROWS):
        w = weights[start : start + ROWS]
        run = passes(net, *source(start, start + len(w)))
        factor = (math.sqrt(net.scale) * run.head.factor()).to(run.z.dtype)
        for l in range(len(net.layers) - 1, -1, -1):
            if net.layers[l].width:
                norm = net.layers[l].augmented(run.a[l]).double().square().sum(dim=1)
                total += (w * norm * factor.double().square().sum(dim=(1, 2))).sum()
            if l > 0:
                factor = step_down(net, run, l - 1, factor)
    return float(total)


def general_trace(objective: Objective, classes: int) -> float | None:
    """tr G of any logits from per-sample Jacobians.

    Returns:
        None if they are too many, or torch can't take single samples apart.
    """
    size = objective.parameters * classes
    samples = len(objective.targets.weights)
    if objective.coupled or size * samples > WORK or size > ENTRIES:
        return None
    total = torch.zeros((), dtype=torch.float64, device=objective.device)
    for rows in objective.chunks(max(1, ENTRIES // size)):
        inputs = objective.chunk_inputs(rows)
        with torch.no_grad():
            at = head(objective.logits(rows), objective.targets.y[rows])
        root = math.sqrt(objective.scale) * (at.total * (at.p if classes > 1 else at.p * at.complement)).sqrt()
        try:
            squares = vmap(partial(_square, objective))(inputs, root, at.p, at.pivot, at.shifts)
        except (RuntimeError, NotImplementedError) as error:
            if ran_out(error):
                raise
            return None
        total += (objective.targets.weights[rows] * squares.double()).sum()
    return float(total)


def _square(objective: Objective, inputs: Tensors, root: Tensor, p: Tensor, pivot: Tensor, shifts: Tensor) -> Tensor:
    """‖ℒᵀJ‖_F² of one sample, whose inputs come without a sample axis; root is √p of several logits."""
    batch = {name: tensor.unsqueeze(0) for name, tensor in inputs.items()}

    def weighted(selected: Tensors) -> Tensor:
        z = objective.function({**objective.fixed, **selected}, batch)[0].double()
        if len(p) == 1:
            return root * z
        z = z - torch.where(shifts, z.gather(0, pivot), 0.0)
        return root * (z - p @ z)

    jacobian = jacrev(weighted)(dict(objective.selected))
    return sum((part.square().sum() for part in jacobian.values()), torch.zeros_like(p[0]))
