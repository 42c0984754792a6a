"""Loss, gradient and Hessian-vector products by automatic differentiation, for any logits.

Samples are processed in chunks; each chunk's loss uses the samples' weights in the whole batch, so that ragged chunks
add up. Products of a chunk are computed in the working dtype, sums over chunks in float64.
"""

from __future__ import annotations

import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

from wsb_engine import devices
from wsb_engine.curvature.losses import Loss, Targets
from wsb_engine.errors import finite
from wsb_engine.internals import BackwardCFunction
from wsb_engine.memory import ran_out
from wsb_engine.model import Tensors

Logits = Callable[[Tensors, Tensors], Tensor]
Rows = slice | Tensor
"""A range of samples, or their indices."""

GRADIENT_SAMPLES = 1024
"""Samples in a chunk of a gradient."""
PRODUCT_SAMPLES = 128
"""Samples in a chunk of a block of products, which holds the intermediates of each column."""
COLUMNS = 64
"""Vectors multiplied at once."""
LARGE = 1 << 14
"""Smallest number of entries of a gradient that is not held until all are known."""
FORWARD_MODE = threading.Lock()
"""torch counts levels of forward-mode differentiation for all threads together, so products from scratch take turns;
those in reverse mode as well: their work is small, and a model's function may keep what threads share."""

_INTERRUPTS = "_wsb_interrupts"


def _go_on() -> None:
    """Do not interrupt."""


def interrupted(error: BaseException) -> bool:
    """Return True if an error says nothing of the computation: the caller interrupted it, or a GPU failed."""
    return hasattr(error, _INTERRUPTS) or devices.has_failed(error)


class Chunk(NamedTuple):
    """Some samples, on the working device."""

    inputs: Tensors
    y: Tensor
    weights: Tensor


@dataclass(frozen=True, kw_only=True)
class Objective:
    """L of all samples as a function of the selected parameters."""

    function: Logits
    selected: Mapping[str, Tensor]
    """Parameters that are differentiated, in the working dtype and on the working device."""
    fixed: Mapping[str, Tensor]
    """Parameters that are not differentiated."""
    inputs: Mapping[str, Tensor]
    """As loaded; cast and moved chunk by chunk."""
    widened: Mapping[str, torch.dtype] = field(default_factory=dict)
    """Floating dtypes in which the model takes inputs that are stored as integers."""
    loss: Loss
    targets: Targets
    dtype: torch.dtype
    device: torch.device
    fits: int = sys.maxsize
    """Number of samples whose gradients fit in memory at once."""
    fits_in_double: int = sys.maxsize
    """The same in float64, in which convolutions on a CPU take more memory than twice that of float32."""
    memory_format: torch.memory_format = torch.preserve_format
    """Memory format of four-dimensional tensors; it changes neither their values nor their order in H."""
    coupled: bool = False
    """True if the logits of a sample depend on the others, so that no batch may be divided."""
    group: int = 1
    """Number of samples that the file takes at a time, if not any number; 1 otherwise."""
    interrupt: Callable[[], None] = _go_on
    """Called before each chunk of samples; may raise to stop. Several threads may call it."""
    scale: float = 1.0
    """A power of four that multiplies the loss inside derivatives, and so H: ``Loss.scale``."""
    disturb: Callable[[Tensor, int], Tensor] | None = None
    """Perturbs a floating input of some rows, to measure rounding; the number identifies rows and input."""
    arithmetic: Callable[[], AbstractContextManager[object]] | None = None
    """Context in which each chunk is computed, to measure rounding; such products are in reverse mode."""

    @property
    def parameters(self) -> int:
        return sum(tensor.numel() for tensor in self.selected.values())

    @property
    def samples(self) -> int:
        return len(self.targets.weights)

    def in_double(self) -> Objective:
        """Return the objective in float64, for which fewer samples fit."""
        return replace(
            self,
            selected={name: tensor.double() for name, tensor in self.selected.items()},
            fixed={name: tensor.double() for name, tensor in self.fixed.items()},
            dtype=torch.float64,
            fits=max(1, min(self.fits * self.dtype.itemsize // torch.float64.itemsize, self.fits_in_double)),
        )

    def pause(self) -> None:
        """Let the caller interrupt; ``interrupted`` distinguishes what that raises from errors of operators."""
        try:
            self.interrupt()
        except Exception as error:
            setattr(error, _INTERRUPTS, True)
            raise

    def chunks(self, size: int = GRADIENT_SAMPLES, *, stop: int | None = None) -> Iterator[slice]:
        """Yield slices of at most ``size`` samples that fit in memory; one slice if the samples are coupled.

        Args:
            size: Most samples in a slice.
            stop: Number of samples of the batch to go through; None for all. Coupled samples are never left out.
        """
        size = self.samples if self.coupled else max(1, min(size, self.fits))
        stop = self.samples if self.coupled or stop is None else min(stop, self.samples)
        for start in range(0, stop, size):
            self.pause()
            yield slice(start, min(start + size, stop))

    def rows(self, name: str, rows: Rows) -> Tensor:
        """Return some rows of an input in the dtype in which the model takes it."""
        part = self.inputs[name][rows]
        return part.to(self.widened.get(name, part.dtype))

    def chunk_inputs(self, rows: Rows) -> dict[str, Tensor]:
        chunk = {}
        for index, name in enumerate(self.inputs):
            part = self.rows(name, rows)
            floating = part.is_floating_point()
            # Copied, since rows of a mapped file may be at any address, and a model may write to its inputs.
            part = part.to(self.device, self.dtype if floating else part.dtype, copy=True)
            if floating and self.disturb is not None:
                first = rows.start if isinstance(rows, slice) else int(rows[0])
                part = self.disturb(part, first * len(self.inputs) + index)
            chunk[name] = in_format(part, self.memory_format)
        return chunk

    def logits(self, rows: Rows) -> Tensor:
        """Return z, (B, C)."""
        return self.function({**self.fixed, **self.selected}, self.chunk_inputs(rows))

    def chunk(self, rows: Rows) -> Chunk:
        """Return the arguments of the loss of some samples other than the parameters."""
        return Chunk(self.chunk_inputs(rows), self.targets.rows(rows), self.targets.weights[rows].contiguous())

    def value(self, selected: Tensors, chunk: Chunk) -> Tensor:
        """Return Σ_s w_s ℓ_s of a chunk, times the scale."""
        parameters = {**self.fixed, **selected}
        z = self.function(parameters, chunk.inputs)
        return (self.scale * chunk.weights * self.loss.values(z, chunk.y)).sum()

    def chunk_loss(self, rows: slice) -> Callable[[Tensors], Tensor]:
        """Return Σ_s w_s ℓ_s of a chunk as a function of the selected parameters."""
        return partial(self.value, chunk=self.chunk(rows))

    def add(self, total: Tensor, tensors: Tensors) -> None:
        """Add tensors by name to (P,) or, if they have a last axis of m columns, to (P, m), in place."""
        for name, piece in self._pieces(total).items():
            piece += tensors[name].reshape(piece.shape)

    def _pieces(self, vector: Tensor) -> dict[str, Tensor]:
        """Return the rows of each parameter by name, as views."""
        pieces = vector.split([tensor.numel() for tensor in self.selected.values()])
        return dict(zip(self.selected, pieces, strict=True))

    def flatten(self, tensors: Tensors) -> Tensor:
        """Concatenates in the order of ``selected``; (P,)."""
        return torch.cat([tensors[name].reshape(-1) for name in self.selected])

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """Invert ``flatten``."""
        return {name: piece.view_as(self.selected[name]) for name, piece in self._pieces(vector).items()}

    def gradient(self) -> Tensor:
        """Return ∇L, (P,) float64."""
        total = torch.zeros(self.parameters, dtype=torch.float64, device=self.device)
        for rows in self.chunks():
            point, loss = self._evaluated(rows)
            if loss.requires_grad:
                _each_gradient(loss, point, _adding(self._pieces(total)))
            del loss
        return total

    def has_own_backward(self) -> bool:
        """Return whether the logits have a backward pass of the module's own: nobody knows what it does."""
        point = self._point()
        few = self.samples if self.coupled else min(self.group, self.samples)
        with torch.enable_grad():
            z = self.function({**self.fixed, **point}, self.chunk_inputs(slice(0, few)))
        waiting: list[Any] = [z.grad_fn]
        seen = set()
        while waiting:
            node = waiting.pop()
            if isinstance(node, BackwardCFunction):
                return True
            if node is not None and node not in seen:
                seen.add(node)
                waiting.extend(following for following, _ in node.next_functions)
        return False

    def twice_backward(self, v: Tensor, size: int = GRADIENT_SAMPLES) -> Tensor:
        """Return H·v, (P,) float64, as the gradient of ⟨∇L, v⟩: by double backward, without torch.func.

        Args:
            v: (P,) in the working dtype.
            size: Most samples in a chunk; it holds the intermediates of a gradient and those of its derivative.
        """
        total = torch.zeros(self.parameters, dtype=torch.float64, device=self.device)
        direction = self.unflatten(v)
        share = 2 if self.arithmetic is None else 6  # activations are written out then
        for rows in self.chunks(min(size, max(1, self.fits // share))):
            chunk = self.chunk(rows)
            with nullcontext() if self.arithmetic is None else self.arithmetic():
                self._add_twice_backward(total, chunk, direction)
        return total

    def _add_twice_backward(self, total: Tensor, chunk: Chunk, direction: Tensors) -> None:
        """Add H·v of a chunk; gradients of large parameters are used as they appear."""
        point = self._point()
        slopes: dict[str, Tensor] = {}

        def along(name: str, part: Tensor) -> None:
            if part.requires_grad:
                slopes[name] = torch.dot(part.flatten(), direction[name].flatten())

        with torch.enable_grad():
            loss = self.value(point, chunk)
            if not loss.requires_grad:
                return
            _each_gradient(loss, point, along, create_graph=True)
            if not slopes:
                return
            # One number, because torch imports a library of symbols to look at more, which takes half a second.
            slope = torch.stack([slopes[name] for name in point if name in slopes]).sum()
        del loss
        slopes.clear()
        _each_gradient(slope, point, _adding(self._pieces(total)))

    def chunk_gradient(self, rows: Rows) -> dict[str, Tensor]:
        """Return ∇ Σ_s w_s ℓ_s of a chunk, by name."""
        point, loss = self._evaluated(rows)
        if not loss.requires_grad:
            return {name: torch.zeros_like(tensor) for name, tensor in self.selected.items()}
        parts = torch.autograd.grad(loss, list(point.values()), allow_unused=True, materialize_grads=True)
        return dict(zip(point, parts, strict=True))

    def _evaluated(self, rows: Rows) -> tuple[dict[str, Tensor], Tensor]:
        """Return the parameters and Σ_s w_s ℓ_s of a chunk, to be differentiated in reverse mode."""
        point = self._point()
        # Not by torch.func, whose import takes more than a second and which plain gradients don't need.
        with torch.enable_grad():
            return point, self.value(point, self.chunk(rows))

    def _point(self) -> dict[str, Tensor]:
        return {name: tensor.detach().requires_grad_() for name, tensor in self.selected.items()}


def _each_gradient(
    value: Tensor, point: Mapping[str, Tensor], use: Callable[[str, Tensor], None], *, create_graph: bool = False
) -> None:
    """Differentiate a number, and give each gradient by name; a large one as soon as it is known, and hold none."""

    def hook(name: str) -> Callable[[Tensor | None], Tensor | None]:
        def used(gradient: Tensor | None) -> Tensor | None:
            if gradient is None:
                return None
            use(name, gradient)
            return gradient.new_zeros(()).expand_as(gradient)  # what torch holds instead

        return used

    handles = {name: tensor.register_hook(hook(name)) for name, tensor in point.items() if tensor.numel() >= LARGE}
    try:
        found = torch.autograd.grad(value, list(point.values()), create_graph=create_graph, allow_unused=True)
    finally:
        for handle in handles.values():
            handle.remove()
    for name, gradient in zip(point, found, strict=True):
        if name not in handles and gradient is not None:
            use(name, gradient)


def _adding(pieces: Mapping[str, Tensor]) -> Callable[[str, Tensor], None]:
    """Return what adds tensors to vectors of as many numbers, by name."""

    def add(name: str, tensor: Tensor) -> None:
        pieces[name] += tensor.detach().reshape(-1)

    return add


def largest_entry(v: Tensor) -> float:
    """Return max |v_i|, NaN if there is one, without another tensor of this size."""
    least, largest = torch.aminmax(v)
    return max(abs(float(least)), abs(float(largest)))


def in_format(tensor: Tensor, memory_format: torch.memory_format) -> Tensor:
    """Return a four-dimensional tensor in this memory format; others stay as they are."""
    if tensor.ndim != 4 or memory_format != torch.channels_last:
        return tensor
    # Copied, because a tensor of one channel is in every format, and what is computed from it follows its strides.
    return tensor.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format).permute(0, 3, 1, 2)


class HessianProduct(ABC):
    """H·V for blocks of columns; the order of H is that of the objective's selected parameters."""

    def __init__(self, objective: Objective, columns: int = COLUMNS) -> None:
        self.objective = objective
        self.columns = min(columns, objective.parameters)
        """Columns to multiply at a time."""
        self.parameters = objective.parameters
        self.dtype, self.device = objective.dtype, objective.device

    @abstractmethod
    def __call__(self, V: Tensor) -> Tensor:
        """Return H·V, (P, m) float64, for V of shape (P, m) in the working dtype."""

    @property
    @abstractmethod
    def description(self) -> str:
        """How it multiplies, for a warning."""

    def smaller(self) -> HessianProduct | None:
        """Return a product of the same H that takes less memory; None if there is none."""
        return None

    def vector(self, v: Tensor) -> Tensor:
        """Return H·v, (P,) float64, for v of shape (P,) in any floating dtype.

        Raises:
            ResourceError: ``overflow`` if it is not finite.
        """
        image = self(v.to(self.dtype).unsqueeze(1)).squeeze(1)
        finite(largest_entry(image), "a Hessian-vector product")
        return image

    def basis(self, start: int, stop: int) -> Tensor:
        """Return columns ``start`` to ``stop`` of the identity, (P, stop − start)."""
        columns = torch.zeros(self.parameters, stop - start, dtype=self.dtype, device=self.device)
        columns[start:stop].fill_diagonal_(1)
        return columns


class AutodiffProduct(HessianProduct):
    """Automatic differentiation of the gradient: any logits that torch can differentiate twice.

    By default in forward mode. Reverse mode calls operators once more without calling Python for each of their
    derivatives, which is faster if their work is small.

    Args:
        objective: The loss.
        columns: Columns to multiply at a time.
        samples: Number of samples in a chunk; by default as many as are useful and fit. Coupled ones are never split.
        reverse: True to multiply single columns in reverse mode, as far as torch has these derivatives.
    """

    def __init__(
        self, objective: Objective, columns: int = COLUMNS, samples: int | None = None, *, reverse: bool = False
    ) -> None:
        if objective.coupled:
            samples, columns = objective.samples, max(1, min(columns, objective.fits // objective.samples - 1))
        super().__init__(objective, columns)
        useful = GRADIENT_SAMPLES if self.columns == 1 else PRODUCT_SAMPLES
        # A column adds a derivative of each intermediate of the gradient.
        fitting = min(useful, objective.fits // (1 + self.columns), len(objective.targets.weights))
        self.samples = max(1, fitting if samples is None else samples)
        self.reverse = reverse

    @property
    def description(self) -> str:
        return f"{self.samples} samples at a time, each product from scratch"

    def smaller(self) -> AutodiffProduct | None:
        if self.samples == 1 or self.objective.coupled:
            return None
        return AutodiffProduct(self.objective, self.columns, self.samples // 2, reverse=self.reverse)

    def __call__(self, V: Tensor) -> Tensor:
        objective = self.objective
        if objective.coupled and V.shape[1] > self.columns:
            # Samples can't be split, so columns are.
            return torch.cat([self(some) for some in V.split(self.columns, dim=1)], dim=1)
        if self.reverse and V.shape[1] == 1:
            try:
                with FORWARD_MODE:
                    return objective.twice_backward(V[:, 0], self.samples).unsqueeze(1)
            except RuntimeError as error:
                if interrupted(error) or ran_out(error) or objective.arithmetic is not None:
                    raise
                self.reverse = False  # an operator that has a derivative in forward mode only
        total = torch.zeros(V.shape, dtype=torch.float64, device=V.device)
        point = dict(objective.selected)
        for rows in objective.chunks(self.samples):
            gradient = grad(objective.chunk_loss(rows))

            def product(v: Tensor, gradient: Callable[[Tensors], Tensors] = gradient) -> dict[str, Tensor]:
                tangent: dict[str, Tensor] = jvp(gradient, (point,), (objective.unflatten(v),))[1]
                return tangent

            # Without vmap a single product costs half as much.
            with FORWARD_MODE:
                parts = product(V[:, 0]) if V.shape[1] == 1 else vmap(product, in_dims=1, out_dims=-1)(V)
            objective.add(total, parts)
            del parts  # before the next chunk's take their place
        return total
