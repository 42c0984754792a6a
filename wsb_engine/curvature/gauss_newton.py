"""Trace and spectrum of the generalised Gauss-Newton matrix G = Σ_s w_s J_sᵀ S_s J_s, J_s = ∂z_s/∂θ (Schraudolph 2002).

H = G + Σ_s w_s Σ_c g_c ∇²z_c: tr G is the part of t that the loss's own curvature makes, the rest is the network's.
With S = FᵀF, tr G = Σ_s w_s ‖F_s J_s‖_F², where F_s J_s is the Jacobian of F_s z_s with F_s held fixed.

G = MᵀM for the N·C rows √w_s F_s J_s of M, so that its eigenvalues other than 0 are those of M Mᵀ, of order N·C. For an
MLP, entry (s, i), (t, j) of M Mᵀ is Σ_l (ã_s·ã_t) (X_s[i]·X_t[j]), with ã of layer l and X = √w F ∂z/∂h_l.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.func import jacrev, vmap

from wsb_engine import devices
from wsb_engine.curvature.closed_form.mlp import Network, forward_backward, step_down
from wsb_engine.curvature.closed_form.sums import TileSource
from wsb_engine.curvature.products.autodiff import Objective, interrupted
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
MAX_ORDER = 4096
"""Largest order of a matrix whose eigenvalues are those of G: M Mᵀ, or G itself if it has fewer parameters."""
SPECTRUM_WORK = 1 << 30
"""Entries of all samples' Jacobians beyond which a general model's spectrum is not computed: what of M does not fit in
memory is computed several times."""
SOLVING = 3
"""Arrays of the size of that matrix that are held to solve for its eigenvalues."""


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


def spectrum(
    objective: Objective,
    classes: int,
    structure: tuple[Network, TileSource] | None,
    *,
    memory: int,
    progress: Callable[[float], None] = lambda _: None,
) -> Tensor | None:
    """Compute the largest eigenvalues of G, as many as its rank can be.

    Args:
        objective: The loss.
        classes: C.
        structure: The network and the source of its tiles, if it is an MLP.
        memory: Bytes to work in.
        progress: Called with the fraction done; may raise to stop.

    Returns:
        (min(N C, P),) float64 on the CPU, descending; None if the loss is not convex, samples depend on each other, the
        matrix or the Jacobians are too large, or torch can't evaluate single samples.
    """
    P, rows = objective.parameters, objective.samples * classes
    order = min(rows, P)
    if not objective.loss.convex or objective.coupled or order > MAX_ORDER or SOLVING * 8 * order**2 > memory:
        return None
    if structure is not None and rows <= P:
        matrix = _mlp_gram(*structure, objective.targets.weights, memory=memory, progress=progress)
    else:
        matrix = _general_gram(objective, classes, progress) if rows * P <= SPECTRUM_WORK else None
    return None if matrix is None else torch.linalg.eigvalsh(matrix).flip(0).cpu()


def _mlp_gram(
    net: Network, source: TileSource, weights: Tensor, *, memory: int, progress: Callable[[float], None]
) -> Tensor | None:
    """Compute M Mᵀ of an MLP layer by layer, (N C, N C) float64; None if the factors do not fit in memory."""
    N, C = len(weights), net.classes
    learning = [l for l, layer in enumerate(net.layers) if layer.width]
    held = sum(net.layers[l].width + C * net.layers[l].d_out for l in learning)
    if 8 * (N * held + SOLVING * (N * C) ** 2) > memory:
        return None
    inputs: dict[int, list[Tensor]] = {l: [] for l in learning}
    factors: dict[int, list[Tensor]] = {l: [] for l in learning}
    for start in range(0, N, ROWS):
        w = weights[start : start + ROWS]
        passes = forward_backward(net, *source(start, start + len(w)))
        roots = (net.scale * w).sqrt().view(-1, 1, 1)
        factor = (roots * passes.loss.factor()).to(passes.z.dtype)
        for l in range(len(net.layers) - 1, -1, -1):
            if l in inputs:
                inputs[l].append(net.layers[l].augmented(passes.a[l]).double())
                factors[l].append(factor.double())
            if l > 0:
                factor = step_down(net, passes, l - 1, factor)
    gram = weights.new_zeros(N, C, N, C)
    for done, l in enumerate(learning, 1):
        a, X = torch.cat(inputs.pop(l)), torch.cat(factors.pop(l)).flatten(0, 1)
        gram += (X @ X.T).view(N, C, N, C).mul_((a @ a.T).view(N, 1, N, 1))
        progress(done / len(learning))
    return gram.view(N * C, N * C)


def _general_gram(objective: Objective, classes: int, progress: Callable[[float], None]) -> Tensor | None:
    """Compute M Mᵀ, or MᵀM if that is smaller, from rows of M; None if torch can't evaluate single samples."""
    P, N = objective.parameters, objective.samples
    chunks = list(objective.chunks(max(1, ENTRIES // (P * classes))))
    outer = N * classes <= P
    order = N * classes if outer else P
    matrix = torch.zeros(order, order, dtype=torch.float64, device=objective.device)
    try:
        for done, rows in enumerate(chunks):
            M = _weighted_jacobians(objective, rows)
            if not outer:
                matrix += M.T @ M
            for others in chunks[done:] if outer else []:
                other = M if others is rows else _weighted_jacobians(objective, others)
                first, second = (slice(each.start * classes, each.stop * classes) for each in (rows, others))
                block = M @ other.T
                matrix[first, second], matrix[second, first] = block, block.T
                objective.pause()
            progress((done + 1) / len(chunks))
    except (RuntimeError, NotImplementedError) as error:
        if interrupted(error) or ran_out(error):
            raise
        return None
    return matrix


def _weighted_jacobians(objective: Objective, rows: slice) -> Tensor:
    """Compute the rows √w_s F_s J_s of M that belong to some samples, (B C, P) float64."""
    with torch.no_grad():
        z = objective.logits(rows)
    jacobians = vmap(partial(_jacobian, objective))(objective.chunk_inputs(rows), z, objective.targets.rows(rows))
    roots = objective.targets.weights[rows].sqrt().view(-1, 1, 1)
    M = torch.cat([part.double().reshape(z.shape[0], z.shape[1], -1) for part in jacobians.values()], dim=2)
    return M.mul_(roots).flatten(0, 1)


def _square(objective: Objective, inputs: Tensors, z: Tensor, y: Tensor) -> Tensor:
    """Compute ‖F J‖_F² of one sample at its logits z (C,); nothing has a sample axis."""
    jacobian = _jacobian(objective, inputs, z, y)
    return sum((part.square().sum() for part in jacobian.values()), z.new_zeros((), dtype=torch.float64))


def _jacobian(objective: Objective, inputs: Tensors, z: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Compute F J of one sample at its logits z (C,), by name and with the scale; nothing has a sample axis."""
    batch = {name: tensor.unsqueeze(0) for name, tensor in inputs.items()}
    at = objective.loss.derivatives(z.unsqueeze(0), y.unsqueeze(0))

    def weighted(selected: Tensors) -> Tensor:
        logits = objective.function({**objective.fixed, **selected}, batch)[0].double()
        return math.sqrt(objective.scale) * at.factor_times(logits.unsqueeze(1))

    jacobian: dict[str, Tensor] = jacrev(weighted)(dict(objective.selected))
    return jacobian
