"""Hessian products and the closed form, shared by several members (mathematics.md, section 4).

Each member holds all parameters. It multiplies by the Hessian of its rows, and adds every n-th term of t and
q. The first member issues one task after another, and the answers are added up in an order that does not depend on
timing, so every decision is made in one place.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from wsb_engine.curvature.closed_form.layout import Layout
from wsb_engine.curvature.closed_form.mlp import Network
from wsb_engine.curvature.closed_form.sums import ClosedForm, Sums, finish
from wsb_engine.curvature.folds import Fold
from wsb_engine.curvature.products.autodiff import HessianProduct, Objective


@dataclass(frozen=True)
class Multiply:
    """Task: compute H·V, (P, m) float64, with a product that takes ``columns`` columns at a time."""

    columns: int
    fold: Fold | None = None
    """Rows to leave out."""


@dataclass(frozen=True)
class Add:
    """Task: add one term of the closed form; the answer is the fraction done, (1,)."""

    plan: Layout


@dataclass(frozen=True)
class Collect:
    """Task: return the sums so far, packed."""


Task = Multiply | Add | Collect


class Team(ABC):
    """The members of one analysis, as seen by the first."""

    size: int

    @abstractmethod
    def answers(self, task: Task, tensor: Tensor | None = None) -> list[Tensor]:
        """Return the answers to a task, in the order of members, on the first member's device."""

    @abstractmethod
    def sum(self, task: Task, tensor: Tensor | None = None) -> Tensor:
        """Return the sum of the answers to a task on the first member's device.

        One answer at a time is moved there: products of large models fit where all of them together would not.
        """


class SplitProduct(HessianProduct):
    """H·V as the sum over members of the contributions of their rows, without those of a fold if one is given."""

    def __init__(
        self, objective: Objective, columns: int, team: Team, count: Callable[[int], None], fold: Fold | None = None
    ) -> None:
        super().__init__(objective, columns)
        self._team, self._count, self._fold = team, count, fold

    @property
    def description(self) -> str:
        return f"samples split {self._team.size} ways"

    def __call__(self, V: Tensor) -> Tensor:
        total = self._team.sum(Multiply(self.columns, self._fold), V)
        self._count(V.shape[1])
        return total


def split_closed_form(
    net: Network, samples: int, plan: Layout, team: Team, *, progress: Callable[[float], None] = lambda _: None
) -> ClosedForm:
    """Compute the closed form with its terms split over a team.

    Args:
        net: The network.
        samples: N.
        plan: Layout of the sums, which each member follows.
        team: Team that shares the terms.
        progress: Called with the fraction done after each round; may raise to stop.
    """
    fraction = 0.0
    while fraction < 1:
        fraction = float(team.answers(Add(plan))[0])
        progress(fraction)
    parts = [unpacked(packed, len(net.layers), samples) for packed in team.answers(Collect())]
    total = parts[0]
    for part in parts[1:]:
        total = Sums(
            total.block_squares + part.block_squares,
            total.layer_traces + part.layer_traces,
            total.shares + part.shares,
            total.self_share + part.self_share,
            torch.maximum(total.coherence, part.coherence),
        )
    return finish(total, plan)


def packed(sums: Sums) -> Tensor:
    """Return all sums in one row, (L² + L + N + 2,) float64."""
    return torch.cat(
        [
            sums.block_squares.flatten(),
            sums.layer_traces,
            sums.shares,
            sums.self_share.reshape(1),
            sums.coherence.reshape(1),
        ]
    )


def unpacked(row: Tensor, layers: int, samples: int) -> Sums:
    """Inverse of ``packed``."""
    squares, traces, shares, self_share, coherence = row.split([layers**2, layers, samples, 1, 1])
    return Sums(squares.view(layers, layers), traces, shares, self_share[0], coherence[0])
