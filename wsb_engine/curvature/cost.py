"""The cost of one more sample: bytes of intermediates and operations, counted on two samples rather than timed.

If samples depend on each other, as with attention over the batch, the cost per sample may grow with their number; then
the whole batch counts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import ceil
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wsb_engine import devices
from wsb_engine.curvature.closed_form.layout import TRAFFIC
from wsb_engine.curvature.losses import Targets
from wsb_engine.curvature.products.autodiff import Objective, Rows
from wsb_engine.curvature.tracing.dispatch import OperatorWatch
from wsb_engine.internals import flop_registry, tree_leaves

WORKING_SHARE = 0.5
"""Largest share of the memory limit for the intermediates of one product."""
LEAST_SHARE = 0.3
"""Share of it that is left to them if vectors need all of it: more of them are counted than are held at once."""
WORKING_VECTORS = 13
"""Vectors of float64 that a run needs besides its basis: residuals, images, Ritz vectors, and those of the product."""
COUNTED = 16
"""Coupled samples that are counted at a time; the counts at one, two and three times as many are extrapolated."""
PRODUCT_OPERATIONS = 2.0
"""Operations of a product relative to a gradient's: each operation and its derivative."""

CPU_RATE = 1.5e10
"""Nominal operations per second of one thread of a CPU in float64; twice that in float32."""
GPU_RATE = 3e11
"""Nominal operations per second of one multiprocessor of a GPU in float32."""

LAUNCH_SECONDS = 1e-5
"""Seconds that starting a kernel takes: what calls it, and the GPU itself."""

SOLVER_SHARE_GPU = 1 / 14
"""Share of the nominal rate at which a GPU's eigensolver computes; on a CPU it computes at that rate."""

MEASURED_SIZE, MEASURED_SIZE_GPU, MEASUREMENTS = 512, 4096, 5
"""Order of the matrices by which a rate is measured, and the number of products, of which the fastest counts."""
EFFICIENCY = 0.5
"""Share of the rate of a matrix product at which an analysis computes."""


def nominal_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the operations per second that budgets assume, by the kind of device.

    Not measured, so that the same input on the same machine leads to the same choices however busy it is.
    """
    if device.type == "cpu":
        return CPU_RATE * torch.get_num_threads() * (2 if dtype == torch.float32 else 1)
    found = devices.properties(device)
    return GPU_RATE * found.multiprocessors * (1 if dtype == torch.float32 else found.double_rate)


def launch_operations(device: torch.device, dtype: torch.dtype) -> float:
    """Return the operations that a device could do while it starts a kernel; 0 for a CPU, which starts none."""
    return LAUNCH_SECONDS * nominal_rate(device, dtype) if devices.is_gpu(device) else 0.0


def solver_operations(order: int, device: torch.device) -> float:
    """Return the operations, at the nominal rate, that all eigenvalues of a dense matrix take."""
    return 4 / 3 * order**3 / (SOLVER_SHARE_GPU if devices.is_gpu(device) else 1)


@cache
def measured_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Measure a matrix product once per process, and return the operations per second to expect of an analysis."""
    size = MEASURED_SIZE if device.type == "cpu" else MEASURED_SIZE_GPU
    factor, best = torch.ones(size, size, device=device, dtype=dtype), math.inf
    for _ in range(MEASUREMENTS):
        started = time.perf_counter()
        float((factor @ factor)[0, 0])  # waits for a GPU
        best = min(best, time.perf_counter() - started)
    return EFFICIENCY * 2 * size**3 / best


@dataclass(frozen=True)
class Footprint:
    """Cost of one sample; for coupled samples, its share of the whole batch."""

    bytes: int
    """Bytes of all intermediates; more than are held at once."""
    operations: float
    """Multiplications and additions of matrix products, plus a charge per number written."""
    operators: int = 0
    """Operators that run, for any number of samples."""
    unfolded: int = 0
    """Bytes of the largest buffer that an operator takes for itself in float64; it takes none in float32."""
    itemsize: int = 8
    """Bytes of a number in the dtype that was counted."""

    @property
    def held(self) -> int:
        """Bytes to reckon with when samples have to fit in memory."""
        return self.bytes + (self.unfolded if self.itemsize == torch.float64.itemsize else 0)

    def in_double(self) -> Footprint:
        """Return the footprint in float64, in which the same values are computed to check those in float32."""
        double = torch.float64.itemsize
        return replace(self, bytes=self.bytes * double // self.itemsize, itemsize=double)

    def fits(self, memory: int, parameters: int = 0) -> int:
        """Return the number of samples that fit in a memory limit together, beside vectors of P; at least 1."""
        left = memory - WORKING_VECTORS * torch.float64.itemsize * parameters
        working = min(memory * WORKING_SHARE, max(left, memory * LEAST_SHARE))
        return max(1, int(working) // max(self.held, 1))


class _Counts(NamedTuple):
    """Bytes, operations and unfolded bytes of some samples."""

    bytes: int
    operations: float
    unfolded: int


class _Counter(OperatorWatch):
    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.operations, self.operators, self.unfolded = 0, 0.0, 0, 0

    def ran(self, operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        self.operators += 1
        self.unfolded = max(self.unfolded, _unfolded(operator, args, result))
        if operator in flop_registry:
            self.operations += flop_registry[operator](*args, **kwargs, out_val=result)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.bytes += leaf.numel() * leaf.itemsize
                self.operations += TRAFFIC * leaf.numel()


def _unfolded(operator: Any, args: tuple[Any, ...], result: Any) -> int:
    """Return the bytes of the patches of all samples, which a convolution in float64 on a CPU unfolds at once."""
    if operator is torch.ops.aten.convolution:
        x, weight, y, transposed = args[0], args[1], result, args[6]
    elif operator is torch.ops.aten.convolution_backward:
        y, x, weight, transposed = args[0], args[1], args[2], args[7]
    else:
        return 0
    if x.device.type != "cpu" or not x.is_floating_point() or weight.shape[2:].numel() == 1:
        return 0
    positions = (x if transposed else y).shape[2:].numel()
    unfolded: int = len(x) * weight.shape[1:].numel() * positions * torch.float64.itemsize
    return unfolded


def logits_footprint(objective: Objective) -> Footprint:
    """Return the footprint of the logits alone."""
    return _footprint(objective, Objective.logits)


def gradient_footprint(objective: Objective) -> Footprint:
    """Return the footprint of the loss and its gradient."""
    return _footprint(objective, Objective.chunk_gradient)


def _footprint(objective: Objective, function: Callable[[Objective, Rows], object]) -> Footprint:
    operators = 0

    def count(samples: int) -> _Counts:
        nonlocal operators
        rows = torch.arange(samples) % objective.samples
        # Converted in advance, so that the same labels cost the same in whatever form they are stored.
        targets = Targets(objective.targets.rows(slice(0, samples)), objective.targets.weights)
        counted = replace(objective, targets=targets)
        with _Counter() as counter:
            function(counted, rows)
        operators = counter.operators
        return _Counts(counter.bytes, counter.operations, counter.unfolded)

    if objective.coupled:
        found = _share(count, objective.samples)
    else:
        found = _one_more(count, objective.samples, objective.group)
    return replace(found, operators=operators, itemsize=objective.dtype.itemsize)


def _one_more(count: Callable[[int], _Counts], samples: int, group: int) -> Footprint:
    """Return the difference between three groups of samples and two, without costs independent of their number."""
    # Not one sample if there are more: operators on whole batches may refuse a single one.
    fewer, more = (count(2 * group), count(3 * group)) if samples > group else (_Counts(0, 0.0, 0), count(group))
    size, operations, unfolded = (max(b - a, 0) for a, b in zip(fewer, more, strict=True))
    return Footprint(int(size) // group, operations / group, unfolded=int(unfolded) // group)


def _share(count: Callable[[int], _Counts], samples: int) -> Footprint:
    """Return one sample's share of the whole batch, extrapolated quadratically from a few samples."""
    counts = [count(samples)] if samples <= 3 * COUNTED else [count(times * COUNTED) for times in (1, 2, 3)]
    size, operations, unfolded = (_continued(each, samples / COUNTED) / samples for each in zip(*counts, strict=True))
    return Footprint(ceil(size), operations, unfolded=ceil(unfolded))


def _continued(values: Sequence[float], x: float) -> float:
    """Evaluate at x > 3 the parabola through ``values`` at 1, 2, 3; a line if concave, a constant for one value."""
    if len(values) == 1:
        return values[0]
    first, second, third = values
    bend = max(third - 2 * second + first, 0)
    return third + (third - second) * (x - 3) + bend * (x - 3) * (x - 2) / 2
