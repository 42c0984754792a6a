"""Members that share the products and pairs of samples of one analysis; the devices of one process are such members."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import replace

import torch
from torch import Tensor

from wsb_engine import devices
from wsb_engine.analysis.monitor import Monitor
from wsb_engine.analysis.problem import Problem
from wsb_engine.curvature.closed_form.layout import Layout
from wsb_engine.curvature.closed_form.sums import Sums, add_terms, no_sums
from wsb_engine.curvature.folds import Fold
from wsb_engine.curvature.products.autodiff import HessianProduct
from wsb_engine.curvature.team import Add, Collect, Multiply, Task, Team, packed
from wsb_engine.model import Tensors


class Member:
    """The rows of one member, and its sums so far.

    Args:
        problem: The whole analysis.
        index: Index of this member.
        count: Number of members.
        device: Device of this member.
    """

    def __init__(self, problem: Problem, index: int, count: int, device: torch.device) -> None:
        self.device = device
        self._index, self._count = index, count
        self._whole = _part(problem, slice(None), device)
        samples = problem.samples
        share = slice(index * samples // count, (index + 1) * samples // count)
        if problem.objective.coupled:
            # Samples that depend on each other all belong to the first member.
            share = slice(0, 0 if index else samples)
        self._share, self._own = share, _part(self._whole, share, device)
        self._products: dict[Multiply, HessianProduct] = {}
        self._sums: Sums | None = None
        self._terms: Iterator[float] = iter(())

    def answer(self, task: Task, tensor: Tensor | None = None) -> Tensor:
        """Carry out a task; the result is float64 on this member's device."""
        match task:
            case Multiply(columns, fold):
                if tensor is None:
                    raise ValueError("a product needs columns")
                if not self._own.samples:
                    return torch.zeros(tensor.shape, dtype=torch.float64, device=self.device)
                if task not in self._products:
                    # The products of earlier folds are not needed any more.
                    self._products = {key: product for key, product in self._products.items() if key.fold is None}
                    self._products[task] = self._without(fold).hessian_product(columns)
                return self._products[task](tensor.to(self.device))
            case Add(plan):
                with torch.no_grad():
                    sums = self._sums or self._start(plan)
                    return sums.shares.new_tensor([next(self._terms)])
            case Collect():
                if self._sums is None:
                    raise ValueError("nothing was added")
                row, self._sums = packed(self._sums), None
                return row

    def _without(self, fold: Fold | None) -> Problem:
        """Return the problem of this member's rows, without those of a fold."""
        if fold is None:
            return self._own
        weights = fold.left_out(self._whole.objective.targets.weights)[self._share]
        return reweighted(self._own, weights)

    def _start(self, plan: Layout) -> Sums:
        structure, weights = self._whole.structure, self._whole.objective.targets.weights
        if structure is None:
            raise ValueError("the closed form needs an MLP")
        net, source = structure.net, self._whole.tile
        self._sums = no_sums(net, weights)
        self._terms = add_terms(net, source, weights, plan, self._sums, self._index, self._count)
        return self._sums


def reweighted(problem: Problem, weights: Tensor) -> Problem:
    """Return the problem with other weights, (N,) float64, on one member."""
    objective = problem.objective
    return problem.at(replace(objective, targets=replace(objective.targets, weights=weights)))


def _part(problem: Problem, rows: slice, device: torch.device) -> Problem:
    """Move some rows to a device, each with the weight that it has in the whole."""

    def moved(tensors: Tensors) -> dict[str, Tensor]:
        return {name: tensor.to(device) for name, tensor in tensors.items()}

    whole = problem.objective
    objective = replace(
        whole,
        selected=moved(whole.selected),
        fixed=moved(whole.fixed),
        inputs={name: tensor[rows] for name, tensor in whole.inputs.items()},
        targets=whole.targets.part(rows, device),
        device=device,
        interrupt=lambda: None,
    )
    return replace(problem.at(objective), count=lambda _: None)


def split(problem: Problem, chosen: Sequence[torch.device], stack: ExitStack, monitor: Monitor) -> Problem:
    """Share a problem among several devices; the same problem if there is one, or the samples can't be divided.

    Args:
        problem: The whole analysis, posed on the first device.
        chosen: The devices.
        stack: Ends their threads when it closes.
        monitor: Receives the warning that says so.
    """
    if len(chosen) <= 1 or problem.objective.coupled:
        return problem
    names = ", ".join(map(devices.name, chosen))
    monitor.warn("split", f"products and pairs of samples were split over {names}")
    return replace(problem, team=stack.enter_context(Devices(problem, chosen)))


class Devices(Team):
    """Several devices of this process, each with its thread; a context manager whose exit ends the threads.

    Args:
        problem: The whole analysis, posed on the first device.
        chosen: One device for each member.
    """

    def __init__(self, problem: Problem, chosen: Sequence[torch.device]) -> None:
        self.size = len(chosen)
        self._members = [Member(problem, index, self.size, device) for index, device in enumerate(chosen)]
        self._threads = ThreadPoolExecutor(self.size, thread_name_prefix="wsb-device")
        self._begun: set[Multiply] = set()

    def __enter__(self) -> Devices:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown()

    def answers(self, task: Task, tensor: Tensor | None = None) -> list[Tensor]:
        return [answer.to(self._members[0].device) for answer in self._answered(task, tensor)]

    def sum(self, task: Task, tensor: Tensor | None = None) -> Tensor:
        total, *others = self._answered(task, tensor)
        while others:
            total += others.pop(0).to(total.device)
        return total

    def _answered(self, task: Task, tensor: Tensor | None) -> list[Tensor]:
        """Return the answers in the order of members, each on its member's device."""
        if isinstance(task, Multiply) and task not in self._begun:
            # The first use of a product may trace its function, which patches torch for all threads.
            self._begun.add(task)
            return [member.answer(task, tensor) for member in self._members]
        futures = [self._threads.submit(member.answer, task, tensor) for member in self._members]
        wait(futures)
        return [future.result() for future in futures]
