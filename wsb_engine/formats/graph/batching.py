"""Running a graph that was exported for a fixed number of samples on any number of them.

Exporters write the example's batch size into the graph, as the target of a Reshape for instance. Two ways around it:
rescale those targets to the batch at hand, which is fast, or run the graph on slices of the size it was exported
for, under vmap, which is always right if the graph treats samples independently. The first is used if it
gives the same values as the second on random inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.func import vmap

from wsb_engine.errors import ModelError
from wsb_engine.formats.graph import problems
from wsb_engine.model import Input, Tensors

_AGREEMENT = 1e-6
"""Relative, in float64: rounding is 1e-10 at most, a mix-up of samples is of order one."""


class Program(Protocol):
    """A program that knows its inputs; see ``Planned``."""

    parameters: tuple[str, ...]
    inputs: tuple[Input, ...]

    def __call__(
        self,
        parameters: Tensors,
        inputs: Tensors,
        *,
        declared: int | None = None,
        working: torch.dtype | None = None,
    ) -> tuple[Tensor, ...]:
        """Compute the values for inputs of any number of samples."""


def declared_batch(inputs: tuple[Input, ...]) -> int | None:
    """Return the number of samples that the file is fixed to, or None if any number is allowed."""
    sizes = {entry.shape[0] if entry.shape else None for entry in inputs}
    return sizes.pop() if len(sizes) == 1 else None


class BatchProgram:
    """A program whose inputs all have the samples on their first axis, for any number of samples.

    Args:
        program: One output with the samples on its first axis.
        stored: The parameters' values in the file.
    """

    def __init__(self, program: Program, stored: Tensors) -> None:
        self.program = program
        self.declared = declared_batch(program.inputs)
        self._sliced = self.declared is not None and not self._rescales(stored, self.declared)

    def __call__(self, parameters: Tensors, inputs: Tensors, *, working: torch.dtype | None = None) -> Tensor:
        """Return the program's output for any number of samples; arguments and errors as for ``Program``."""
        samples = {inputs[entry.name].shape[0] for entry in self.program.inputs if entry.name in inputs}
        if self.declared is None or samples == {self.declared}:
            return self.program(parameters, inputs, working=working)[0]
        if self._sliced:
            used = {entry.name: inputs[entry.name] for entry in self.program.inputs}

            def of_group(part: Tensors) -> Tensor:
                return self.program(parameters, part, working=working)[0]

            return in_groups(of_group, used, self.declared)
        return self.program(parameters, inputs, declared=self.declared, working=working)[0]

    def random_inputs(self, samples: int) -> Tensors | None:
        """Normal numbers (0 or 1 for integers) of the declared shapes; None if a size is not declared."""
        generator = torch.Generator().manual_seed(0)
        inputs = {}
        for entry in self.program.inputs:
            if entry.shape is None or None in entry.shape[1:]:
                return None
            sizes = [samples, *(size or 1 for size in entry.shape[1:])]
            if entry.dtype is None or entry.dtype.is_floating_point:
                inputs[entry.name] = torch.randn(sizes, generator=generator, dtype=torch.float64)
            else:
                inputs[entry.name] = torch.randint(0, 2, sizes, generator=generator).to(entry.dtype)
        return inputs

    def _rescales(self, stored: Tensors, declared: int) -> bool:
        """Return whether the graph with rescaled targets agrees with its slices on random inputs."""
        inputs = self.random_inputs(2 * declared)
        if inputs is None:
            return True  # a file that leaves sizes free computes its targets from them

        def run(inputs: Tensors, declared: int | None = None) -> Tensor:
            return self.program(stored, inputs, declared=declared, working=torch.float64)[0]

        try:
            whole = run(inputs, declared)
        except ModelError:
            return False
        halves = [run({name: x[start : start + declared] for name, x in inputs.items()}) for start in (0, declared)]
        parts = torch.cat(halves) if halves[0].ndim else torch.stack(halves)
        return whole.shape == parts.shape and torch.allclose(
            whole, parts, rtol=_AGREEMENT, atol=_AGREEMENT, equal_nan=True
        )


def in_groups(function: Callable[[Tensors], Tensor], inputs: Tensors, size: int) -> Tensor:
    """Compute a function of ``size`` samples for any number of samples, group by group under vmap.

    Args:
        function: Inputs of a group, by name → values, with the samples on the first axis.
        inputs: By name, with the samples on the first axis.
        size: Number of samples that the function takes.

    Raises:
        ModelError: ``evaluation_failed`` if the function gives another number of rows.
    """
    samples = len(next(iter(inputs.values())))
    short = -samples % size
    stacked = {}
    for name, x in inputs.items():
        # The last group is filled up with copies, which are cut off again.
        filled = torch.cat([x, x[-1:].expand(short, *x.shape[1:])]) if short else x
        stacked[name] = filled.reshape(-1, size, *x.shape[1:])
    made: Tensor = vmap(function)(stacked)
    if made.shape[1:2] != (size,) and not (size == made.ndim == 1):
        raise problems.evaluation_failed("the model", f"{size} samples give an output of shape {list(made.shape[1:])}")
    return made.reshape(-1, *made.shape[2:])[:samples]
