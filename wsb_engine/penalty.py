"""The Wolkowicz-Styan bound as a differentiable penalty (mathematics.md, section 8; arXiv 2606.28662)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wsb_engine.curvature.closed_form.layout import cheapest_layout
from wsb_engine.curvature.closed_form.mlp import network
from wsb_engine.curvature.closed_form.sums import differentiable_moments
from wsb_engine.curvature.losses import Loss, automatic
from wsb_engine.errors import BatchError, ModelError
from wsb_engine.formats.module import live_mlp

MEMORY = 1 << 30
"""Bytes for sums over pairs of samples, before autograd doubles them."""
FLOOR = 1e-30
"""Added to s² under the root, whose slope is infinite at 0."""


def wolkowicz_styan_penalty(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Compute U = m + s√(P−1) of the batch's cross-entropy Hessian, differentiable in the parameters.

    Args:
        module: A live smooth MLP; a softmax or sigmoid at its end is removed.
        x: (N, …) inputs, in the module's dtype and on its device.
        y: (N,) integer labels, or (N, C) probabilities; for one logit (N,) or (N, 1) in [0, 1].

    Returns:
        A scalar in float64 on the module's device. L + ρ·U flattens the minimum.

    Raises:
        ModelError: ``closed_form_unavailable`` if the module is no smooth MLP, ``multilabel_unsupported`` if it ends in
            several sigmoids.
        BatchError: ``row_count_mismatch``, ``label_classes_mismatch``.
        ResourceError: ``memory_limit`` if the pairs of samples don't fit; use smaller batches.

    Examples:
        >>> import torch
        >>> import wsb
        >>> module = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3)).double()
        >>> x, y = torch.eye(4).double(), torch.tensor([0, 1, 2, 1])
        >>> penalty = wsb.wolkowicz_styan_penalty(module, x, y)
        >>> loss = torch.nn.functional.cross_entropy(module(x), y) + 0.01 * penalty
        >>> loss.backward()

        It is the upper bound of the report:

        >>> report = wsb.analyze(wsb.from_module(module), wsb.Batch(x, y), wsb.Options(enclosure=False))
        >>> abs(penalty.item() / report.bounds.wolkowicz_styan.lambda_max.upper - 1) < 1e-9
        True
    """
    mlp = live_mlp(module)
    if mlp is None:
        raise ModelError(
            "the penalty needs a smooth multi-layer perceptron, which this module is not",
            code="closed_form_unavailable",
            advice="Use smooth activations (tanh, sigmoid, softplus, GELU, SiLU) between linear layers.",
        )
    parameters = dict(module.named_parameters())
    loss = automatic(len(parameters[mlp.layers[-1].weight]))
    net = network(mlp, parameters, frozenset(parameters), loss)
    a0 = mlp.features({"x": x})
    targets = _targets(y, len(x), loss, net.classes).to(a0.dtype)
    P = sum(layer.parameters for layer in net.layers)
    layout = cheapest_layout(net, len(x), memory=MEMORY, itemsize=a0.dtype.itemsize, prefer="pairs", tiles=1)
    t, q = differentiable_moments(net, a0, targets, layout)
    m = t / P
    variance = torch.clamp(q / P - m * m, min=0) + FLOOR
    return m + torch.sqrt(variance * (P - 1))


def _targets(y: Tensor, samples: int, loss: Loss, logits: int) -> Tensor:
    if len(y) != samples:
        raise BatchError(
            f"x has {samples} rows, y has {len(y)}", code="row_count_mismatch", advice="Give one label per row."
        )
    if y.ndim == 2:
        return loss.targets(y.double(), logits)
    classes = loss.classes(logits) or 0
    integers = samples and not y.is_floating_point()
    if y.ndim != 1 or (integers and not 0 <= int(y.min()) <= int(y.max()) < classes):
        raise BatchError(
            f"y of shape {list(y.shape)} does not label {classes} classes",
            code="label_classes_mismatch",
            advice="Give integer labels [N] from 0 to C − 1, or probabilities [N, C].",
        )
    return loss.targets(y, logits)
