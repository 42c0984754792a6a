"""Whether the logits of a sample depend on other samples: batch statistics, attention over the batch, a row's position.

Losses of chunks add up to the loss of the batch only if they do not. Two tests compare the logits of the same sample
in different company. In place: some samples become copies of others, and the rest stay where they are. A row then
passes through the same kernels as before, so its logits keep every bit unless they depend on its neighbours, however
weakly. Elsewhere: samples in smaller groups and in reverse order, which also shows dependence on the number of samples
and on positions, but changes how sums are rounded.

Both run in float64. To tell rounding from coupling, every number that the logits are computed from moves by one unit
roundoff: inputs such as timestamps amplify rounding as they amplify that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from wsb_engine import devices
from wsb_engine.analysis.logits import BatchLogits
from wsb_engine.curvature.products.autodiff import GRADIENT_SAMPLES, Logits, Objective
from wsb_engine.errors import ModelError
from wsb_engine.formats.graph.batching import in_groups
from wsb_engine.memory import ran_out
from wsb_engine.model import Input, LogitModel, Tensors

CODE = "samples_coupled"
MESSAGE = "the logits of a sample depend on the other samples: H is of this batch as a whole"
ALONE = "one_at_a_time"
EACH_ALONE = "the file is for one sample at a time, so each sample has the logits that the file gives for it alone"
IN_GROUPS = "in_groups"
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 3, 5, 6, 10, 12, 20, 24, 48, 50, 100)
"""Sizes of an exporter's example that are tried if a file refuses two samples or three."""
NOTHING = 8.0
"""Units of roundoff, relative to the largest logit of a row, that always count as rounding."""
ROUNDING = 1e3
"""Factor by which summing long rows may amplify rounding beyond what moving each number once shows."""
DRAWS = 2
"""Number of draws of random signs by which numbers move."""
SHIFT = 1e-3
"""Relative shift of parameters: a factor of a parameter that is 0 shows only away from 0."""
GROUPS = 4
"""Parts of a chunk that are evaluated as batches."""


@dataclass(frozen=True)
class _Trial:
    """Samples of one batch as they appear in another."""

    other: Tensor
    """Rows of the other batch."""
    here: Tensor
    """Positions of the samples in their own batch."""
    there: Tensor
    """Their positions in the other one."""


def coupled_in_place(objective: Objective) -> bool:
    """Return whether logits follow the contents of other rows, on at most one chunk of samples from the whole batch.

    Only selected parameters are moved away from 0: the others are constant in H too.
    """
    exact = objective.in_double()
    size = min(exact.samples, GRADIENT_SAMPLES, exact.fits)
    rows = torch.arange(size) * exact.samples // size
    generator = torch.Generator().manual_seed(0)
    for point, donors in ((exact, 1), (_shifted(exact, generator), size)):
        z = _evaluated(point, rows)
        if z is not None and any(_couples(point, trial, z) for trial in _halves(rows, donors, generator)):
            return True
    return False


def coupled_elsewhere(objective: Objective, logits: BatchLogits) -> bool:
    """Return whether logits follow the number or the order of samples, in any chunk.

    Args:
        objective: Objective with which the logits were evaluated.
        logits: From the objective's own chunks.
    """
    exact = objective.in_double()
    for chunk in exact.chunks():
        own = torch.arange(chunk.start, chunk.stop)
        same = objective.dtype == exact.dtype
        z = logits.rows(objective, chunk).to(exact.device) if same else _evaluated(exact, own)
        for first in range(min(GROUPS, len(own))):
            here = torch.arange(first, len(own), GROUPS).flip(0)
            if z is not None and _couples(exact, _Trial(own[here], here, torch.arange(len(here))), z):
                return True
    return False


def takes_one(inputs: tuple[Input, ...]) -> bool:
    """Return whether a file declares one sample at a time, so that no sample can depend on another."""
    return {entry.shape[:1] if entry.shape else None for entry in inputs} == {(1,)}


def grouped(function: Logits, size: int) -> Logits:
    """Return the logits of any number of samples, as the file gives them for ``size`` samples at a time.

    If that is 1, each sample has its own logits even if an exporter has fixed the rows of its example, which are then
    taken in place of those of the batch.
    """

    def logits(parameters: Tensors, inputs: Tensors) -> Tensor:
        return in_groups(partial(function, parameters), inputs, size)

    return logits


def in_groups_of(model: LogitModel, size: int) -> LogitModel:
    """Return a model that takes ``size`` samples at a time as one that takes any number."""
    mlp = model.mlp
    if mlp is not None:
        mlp = replace(mlp, features=partial(in_groups, mlp.features, size=size))
    return replace(model, function=grouped(model.function, size), mlp=mlp)


def gives_rows(objective: Objective) -> bool:
    """Return whether two samples have two rows of logits and three have three; an exporter may have fixed the rows."""
    with torch.no_grad():
        return all(objective.logits(torch.arange(n) % objective.samples).shape[:1] == (n,) for n in (2, 3))


def fixed_size(objective: Objective) -> int | None:
    """Return how many samples at a time a file takes if it does not take any number; None if that is not found."""
    for size in SIZES:
        trial = replace(objective, function=grouped(objective.function, size))
        if _evaluated(trial, torch.arange(size) % objective.samples) is not None:
            return size
    return None


def told_of_groups(size: int) -> tuple[str, str]:
    """Return code and message of the warning about a file that takes that many samples at a time."""
    if size == 1:
        return ALONE, EACH_ALONE
    return IN_GROUPS, f"the file takes {size} samples at a time, so the logits are evaluated in groups of {size}"


def require_free_batch(inputs: tuple[Input, ...], objective: Objective) -> None:
    """Reject coupled samples of a file with a fixed number of samples other than the batch's.

    Raises:
        ModelError: ``samples_coupled``.
    """
    sizes = {entry.shape[0] if entry.shape else None for entry in inputs}
    fixed = sizes.pop() if len(sizes) == 1 else None
    if fixed is None and objective.group > 1:
        fixed = objective.group
    if fixed not in (None, objective.samples):
        raise ModelError(
            f"the logits of a sample depend on the other samples, and the file takes {fixed} samples at a time; "
            f"the batch has {objective.samples}",
            code=CODE,
            advice="Export the model with a free batch axis, or in evaluation mode (fixed statistics).",
            samples=objective.samples,
        )


def _halves(rows: Tensor, donors: int, generator: torch.Generator) -> Iterator[_Trial]:
    """Keep a random half of the rows and replace the others by copies of up to ``donors`` of them; then the reverse."""
    order = torch.randperm(len(rows), generator=generator)
    middle = len(rows) // 2
    for kept, replaced in ((order[:middle], order[middle:]), (order[middle:], order[:middle])):
        if len(kept) and len(replaced):
            copied = torch.randint(min(donors, len(kept)), (len(replaced),), generator=generator)
            other = rows.clone()
            other[replaced] = rows[kept[copied]]
            yield _Trial(other, kept, kept)


def _couples(objective: Objective, trial: _Trial, z: Tensor) -> bool:
    """Return whether logits differ by more than rounding between two batches.

    Args:
        objective: The logits, in float64.
        trial: The other batch.
        z: Logits of the samples' own batch.
    """
    other = _evaluated(objective, trial.other)
    if other is None:
        return False
    own, other = z[trial.here], other[trial.there]
    same = (own == other) | (own.isnan() & other.isnan())
    difference = torch.where(same, 0.0, (own - other).abs()).nan_to_num(nan=math.inf).amax(dim=1)
    unit = torch.finfo(objective.dtype).eps * own.nan_to_num().abs().amax(dim=1)
    if bool((difference <= NOTHING * unit).all()):
        return False
    moved = _sensitivity(objective, trial.other)[trial.there]
    # The median, because a row may happen not to move in any draw.
    return bool((difference > ROUNDING * torch.maximum(unit, moved.clamp(min=moved.median()))).any())


def _sensitivity(objective: Objective, rows: Tensor) -> Tensor:
    """Measure the largest change of each row's logits, (B,), if inputs and parameters move by one unit roundoff."""
    generator = torch.Generator().manual_seed(1)
    z = _evaluated(objective, rows)
    moved = torch.zeros(len(rows), dtype=torch.float64, device=objective.device)
    for _ in range(DRAWS):
        near = replace(
            objective, selected=_jittered(objective.selected, generator), fixed=_jittered(objective.fixed, generator)
        )
        there = _evaluated(near, rows, generator)
        if z is not None and there is not None:
            moved = torch.maximum(moved, (there - z).abs().nan_to_num(nan=0.0).amax(dim=1))
    return moved


def _jittered(tensors: Tensors, generator: torch.Generator) -> dict[str, Tensor]:
    """Move floating-point numbers up or down by one unit roundoff."""

    def jitter(tensor: Tensor) -> Tensor:
        signs = torch.randint(2, tensor.shape, generator=generator).to(tensor).mul_(2).sub_(1)
        return tensor * signs.mul_(torch.finfo(tensor.dtype).eps).add_(1)

    return {name: jitter(tensor) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def _shifted(objective: Objective, generator: torch.Generator) -> Objective:
    """Move selected parameters slightly, so that none is 0."""

    def shifted(tensor: Tensor) -> Tensor:
        scale = float(tensor.abs().mean()) or 1.0
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        return tensor + noise.to(tensor).mul_(SHIFT * scale)

    return replace(objective, selected={name: shifted(tensor) for name, tensor in objective.selected.items()})


def _evaluated(objective: Objective, rows: Tensor, jitter: torch.Generator | None = None) -> Tensor | None:
    """Evaluate some rows as one batch, (B, C) float64; None if the model does not take such a batch."""
    objective.pause()
    inputs = objective.chunk_inputs(rows)
    if jitter is not None:
        inputs = _jittered(inputs, jitter)
    try:
        with torch.no_grad():
            z = objective.function({**objective.fixed, **objective.selected}, inputs)
    except Exception as error:  # a file may be fixed to a number of samples, and a module raise anything
        if ran_out(error) or devices.has_failed(error):
            raise
        return None
    return z.double() if z.ndim == 2 and len(z) == len(rows) and z.shape[1] else None
