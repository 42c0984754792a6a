"""Certified λ_max of the diagonal blocks of H that belong to layers and to groups of parameters.

A block is PᵀHP for the columns P of the identity that belong to its parameters. It shares the products of H, and so
what is known of their rounding: ‖PᵀEP‖ ≤ ‖E‖. By Cauchy's interlacing its λ_max is at most that of H.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from wsb_engine import report as r
from wsb_engine.analysis import inputs
from wsb_engine.analysis.monitor import Monitor
from wsb_engine.analysis.problem import Problem
from wsb_engine.analysis.questions.certifying import Operator, certify
from wsb_engine.analysis.rounding import Measuring
from wsb_engine.bounds.certificates import ExactMoments, Premises
from wsb_engine.bounds.rounding import Rounding
from wsb_engine.curvature.closed_form.sums import ClosedForm
from wsb_engine.curvature.products.autodiff import HessianProduct
from wsb_engine.errors import OptionsError
from wsb_engine.model import Tensors
from wsb_engine.options import Options

MAX_LAYERS = 1000
"""Largest number of layers that are certified."""
STREAM = 0x6A09E667
"""Separates the start vectors of blocks from those of other runs of the same seed."""


@dataclass(frozen=True)
class Group:
    """Parameters that belong together."""

    name: str
    tensors: tuple[str, ...]
    """In the order of the selected parameters."""
    moments: ExactMoments | None = None
    """t and q of the block, if the closed form knows them."""

    def count(self, selected: Tensors) -> int:
        """Return the number of parameters."""
        return sum(selected[name].numel() for name in self.tensors)


def layers_of(problem: Problem, closed: ClosedForm | None = None) -> list[Group]:
    """Return the layers of the model: those of an MLP, else the modules that hold the parameters.

    The module of a parameter is its name up to the last dot or slash; a name without one is a layer by itself.

    Args:
        problem: The analysis.
        closed: The closed form, for the moments of the blocks.
    """
    selected, structure = problem.objective.selected, problem.structure
    if structure is None:
        modules: dict[str, list[str]] = {}
        for name in selected:
            modules.setdefault(_module(name), []).append(name)
        return [Group(name, tuple(names)) for name, names in modules.items()]
    layers = []
    for l, dense in enumerate(structure.mlp.layers):
        names = {dense.weight, dense.bias}
        moments = None
        if closed is not None:
            moments = ExactMoments(float(closed.layer_traces[l]), float(closed.block_squares[l, l]))
        layers.append(Group(dense.weight, tuple(name for name in selected if name in names), moments))
    return layers


def _module(name: str) -> str:
    cut = max(name.rfind("."), name.rfind("/"))
    return name[:cut] if cut > 0 else name


def groups_of(problem: Problem, options: Options) -> list[Group]:
    """Return the groups that the options name.

    Raises:
        OptionsError: ``parameter_pattern_unmatched``.
    """
    selected = problem.objective.selected
    found = []
    for glob in options.groups:
        names = tuple(name for name in selected if fnmatchcase(name, glob))
        if not names:
            raise inputs.unmatched(glob, selected, {})
        found.append(Group(glob, names))
    return found


def require_few(problem: Problem, options: Options) -> None:
    """Refuse groups that match nothing, and more layers than a report holds.

    Raises:
        OptionsError: ``parameter_pattern_unmatched``, ``too_many_layers``.
    """
    groups_of(problem, options)
    count = len(layers_of(problem)) if options.layers == "certified" else 0
    if count > MAX_LAYERS:
        raise OptionsError(
            f"the model has {count} layers, at most {MAX_LAYERS} can be certified",
            code="too_many_layers",
            advice="Select fewer with parameters, or name the parts that matter with groups and leave layers out.",
            layers=count,
            limit=MAX_LAYERS,
        )


@dataclass(frozen=True)
class Blocks:
    """What all diagonal blocks of one analysis share.

    Args:
        problem: The analysis.
        product: Products of H with single vectors.
        premises: Premises of the enclosure of H, with all that was measured of its rounding.
        measuring: Measures rounding on the Ritz vectors of blocks.
        options: Options.
        memory: Bytes to work in.
        monitor: Clock, progress and warnings.
    """

    problem: Problem
    product: HessianProduct
    premises: Premises
    measuring: Measuring
    options: Options
    memory: int
    monitor: Monitor

    def certified(self, groups: Sequence[Group], first: int = 0) -> Iterator[r.CertifiedInterval | None]:
        """Yield λ_max of each group's block; None if there is nothing to say, or for a group without parameters.

        Args:
            groups: The groups.
            first: Number of the first group among all; it decides the start vectors.

        Raises:
            TimeLimitError: ``time_limit``.
        """
        for index, group in enumerate(groups):
            self.monitor.report(index / len(groups))
            yield self._certified(group, first + index) if group.tensors else None

    def _certified(self, group: Group, index: int) -> r.CertifiedInterval | None:
        block = _Block(self.problem.objective.selected, group, self.product)

        def measured(rounding: Rounding, x: Tensor, *_: object) -> Rounding:
            known = rounding.product is not None or rounding.failure_probability
            if known or rounding is not self.premises.rounding:  # the first vector is that of the end that is asked for
                return rounding
            # Rounding of H along a vector of the block is at least that of the block.
            whole = block.embedded(x)
            return self.measuring.confirmed(self.product, rounding, whole, self.product.vector(whole))

        found = certify(
            Operator(block.vector, block.parameters, self.product.dtype, self.product.device),
            replace(self.premises, moments=group.moments, both=False),
            self.options,
            seed=(self.options.seed ^ STREAM) + index,
            memory=self.memory,
            monitor=self.monitor,
            measured=measured,
        )
        return None if found is None else found.lambda_max


class _Block:
    """Embeds vectors of a group's parameters among all, and restricts images to them."""

    def __init__(self, selected: Mapping[str, Tensor], group: Group, product: HessianProduct) -> None:
        self._product, self._places = product, []
        start = 0
        for name, tensor in selected.items():
            if name in group.tensors:
                self._places.append(slice(start, start + tensor.numel()))
            start += tensor.numel()
        self._sizes = [place.stop - place.start for place in self._places]
        self.parameters = sum(self._sizes)

    def embedded(self, v: Tensor) -> Tensor:
        """Return (P,) from (n,), zero elsewhere."""
        whole = v.new_zeros(self._product.parameters)
        for place, piece in zip(self._places, v.split(self._sizes), strict=True):
            whole[place] = piece
        return whole

    def vector(self, v: Tensor) -> Tensor:
        image = self._product.vector(self.embedded(v))
        if len(self._places) == 1:
            return image[self._places[0]].clone()
        return torch.cat([image[place] for place in self._places])
