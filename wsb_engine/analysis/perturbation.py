"""The same function at slightly different parameters and inputs, to measure rounding (mathematics.md, section 11)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from wsb_engine.curvature.monte_carlo import MonteCarloArithmetic
from wsb_engine.curvature.products.autodiff import Objective
from wsb_engine.formats.graph.kernels.elementwise import activation
from wsb_engine.model import Tensors
from wsb_engine.random_vectors import uniform

PERTURBATION = 2.0**-43
"""Relative size of a perturbation, in which H is linear except for cancellations that leave no digits anyway."""


JUMP = 2.0**-20
"""Change of a sample's logits, relative to them, at which they jump instead of following a perturbation."""
GENERIC = 2.0**-10
"""Relative size of the noise that makes parameters generic, so that no derivative vanishes by their values."""


def deciding(objective: Objective) -> dict[str, Tensor]:
    """Find numbers among the inputs that logits depend on by comparisons or casts to integers alone.

    Such numbers are category codes, or features on the edge of a bin. Moving one makes the logits jump, though the
    function decides by them as float64 does. Looks only where logits jump.

    Args:
        objective: Objective in float64.

    Returns:
        Input's name → (N, …) bool; empty if no logits jump.
    """
    held: dict[str, Tensor] = {}
    for rows in objective.chunks():
        inputs = objective.chunk_inputs(rows)
        if not _jumps(objective, inputs):
            continue
        for name, gradient in _input_gradients(objective, inputs).items():
            shape = (objective.samples, *gradient.shape[1:])
            held.setdefault(name, torch.zeros(shape, dtype=torch.bool, device=gradient.device))[rows] = gradient == 0
    return held


def _jumps(objective: Objective, inputs: Tensors) -> bool:
    parameters = {**objective.fixed, **objective.selected}
    with torch.no_grad():
        z = objective.function(parameters, inputs)
        for size in (PERTURBATION, -PERTURBATION):
            moved = {name: part * (1 + size) if part.is_floating_point() else part for name, part in inputs.items()}
            change = objective.function(parameters, moved) - z
            if bool((change.abs() > JUMP * z.abs().amax(1, keepdim=True)).any()):
                return True
    return False


def _input_gradients(objective: Objective, inputs: Tensors) -> dict[str, Tensor]:
    """Return the gradient of random combinations of the logits, at generic parameters, by floating-point inputs."""
    generator = torch.Generator().manual_seed(0)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)

    generic = {
        name: (tensor + GENERIC * (float(tensor.square().mean().sqrt()) or 1.0) * noise(tensor)).requires_grad_()
        for name, tensor in objective.selected.items()
    }
    floating = {name: part.detach().requires_grad_() for name, part in inputs.items() if part.is_floating_point()}
    z = objective.function({**objective.fixed, **generic}, {**inputs, **floating})
    gradients = torch.autograd.grad(
        (z * noise(z)).sum(), list(floating.values()), allow_unused=True, materialize_grads=True
    )
    return dict(zip(floating, gradients, strict=True))


def perturbed(objective: Objective, seed: int, held: Mapping[str, Tensor] | None = None) -> Objective:
    """Multiply every parameter and floating-point input by 1 + εξ; an exact zero stays one.

    Args:
        objective: Objective in float64.
        seed: Seed of ξ, which is uniform with unit variance.
        held: Input's name → (N, …) bool, true for numbers that stay: ``deciding``.
    """
    names = list(objective.inputs)

    def moved(tensor: Tensor, stream: int) -> Tensor:
        # In place, because a model's largest tensor may be a third of it.
        xi = uniform(tensor.numel(), seed, stream, tensor.device).view(tensor.shape).mul_(2 * math.sqrt(3))
        return tensor * xi.mul_(PERTURBATION).add_(1)

    def all_moved(tensors: Tensors, first: int) -> dict[str, Tensor]:
        return {name: moved(tensor, first + i) for i, (name, tensor) in enumerate(tensors.items())}

    def disturb(part: Tensor, place: int) -> Tensor:
        first, index = divmod(place, len(names))
        stays = None if held is None else held.get(names[index])
        result = moved(part, -1 - place)
        return result if stays is None else torch.where(stays[first : first + len(part)], part, result)

    count = len(objective.selected)
    return replace(
        objective,
        selected=all_moved(objective.selected, 0),
        fixed=all_moved(objective.fixed, count),
        disturb=disturb,
    )


class WrittenOut(TorchFunctionMode):
    """Runs the functions below in place of torch's own of the same name within its block."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = getattr(function, "__name__", "").partition(".")[0]
        return _WRITTEN_OUT.get(name, function)(*args, **(kwargs or {}))


def _glu(x: Tensor, dim: int = -1) -> Tensor:
    a, b = x.chunk(2, dim)
    return a * torch.sigmoid(b)


def _gelu(x: Tensor, approximate: str = "none") -> Tensor:
    if approximate == "none":
        return x / 2 * (1 + torch.erf(x / math.sqrt(2)))
    return x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _softplus(x: Tensor, beta: float = 1, threshold: float = 20) -> Tensor:
    return torch.where(beta * x > threshold, x, _log_of_one_more(beta * x) / beta)


def _log_sigmoid(x: Tensor) -> Tensor:
    return x - _log_of_one_more(x)


def _log_of_one_more(x: Tensor) -> Tensor:
    """Compute log(1 + e^x), whose derivatives lose digits of a large x as those of torch's softplus do."""
    return torch.logsumexp(torch.stack([x, torch.zeros_like(x)]), 0)


def _log_softmax(x: Tensor, dim: int | None = None, *arguments: Any, **options: Any) -> Tensor:
    if dim is None:
        return functional.log_softmax(x, dim, *arguments, **options)
    shifted = x - x.detach().amax(dim, keepdim=True)
    return shifted - torch.log(torch.exp(shifted).sum(dim, keepdim=True))


def _log_sum_exp(x: Tensor, dim: Any, keepdim: bool = False) -> Tensor:
    largest = x.detach().amax(dim, keepdim=True)
    result = torch.log(torch.exp(x - largest).sum(dim, keepdim=True)) + largest
    return result if keepdim else result.squeeze(dim)


_WRITTEN_OUT: dict[str, Callable[..., Tensor]] = {
    "gelu": _gelu,
    "glu": _glu,
    "log_sigmoid": _log_sigmoid,
    "log_softmax": _log_softmax,
    "logsumexp": _log_sum_exp,
    "silu": activation(lambda x: x * torch.sigmoid(x)),
    "softplus": _softplus,
    "special_ndtr": lambda x: (1 + torch.erf(x / math.sqrt(2))) / 2,
}


def in_monte_carlo_arithmetic(objective: Objective, seed: int, *, written_out: bool) -> Objective:
    """Move results of the operators that compute the loss and its derivatives, and with them what derivatives keep.

    A derivative that is computed from what its operator returned (1 − a² for a = tanh h, a (g − aᵀg) of a softmax)
    loses what the digits of a do not show, and so does a difference of results (1 + erf h). Moving parameters does
    not reveal it, since a saturated result stays as it is.

    Args:
        objective: Objective in float64.
        seed: Seed of the noise.
        written_out: Compute activations by several operators where torch's own lose digits within themselves.
    """
    moving = MonteCarloArithmetic(seed, PERTURBATION, objective.device)

    @contextmanager
    def arithmetic() -> Iterator[None]:
        with WrittenOut() if written_out else nullcontext(), moving:
            yield

    return replace(objective, arithmetic=arithmetic)
