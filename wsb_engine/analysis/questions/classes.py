"""Certified λ_max of the Hessian of the mean loss over the labels of each class.

H = Σ_c π_c H_c, where H_c belongs to the mean over the labels of class c and π_c is their share of the weight of all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from wsb_engine import report as r
from wsb_engine.analysis.monitor import Monitor
from wsb_engine.analysis.problem import Problem
from wsb_engine.analysis.questions.certifying import certify, of_product
from wsb_engine.analysis.rounding import Measuring
from wsb_engine.bounds.certificates import Premises
from wsb_engine.curvature.products.autodiff import Objective
from wsb_engine.errors import OptionsError
from wsb_engine.options import Options

MAX_CLASSES = 1000
"""Largest number of classes that occur in the batch and are certified."""
COPIED_SHARE = 0.25
"""Share of the memory for a copy of a class's samples; beyond it all are read, those of other classes with weight 0."""
STREAM = 0xA54FF53A
"""Separates the start vectors of classes from those of other runs of the same seed."""


@dataclass(frozen=True)
class _Class:
    """The labels of one class."""

    index: int
    y: Tensor
    """Labels as ``Targets.y``, and −1 in place of other classes."""
    weights: Tensor
    """(N,) float64: what each sample adds to π_c."""

    @property
    def weight(self) -> float:
        """π_c"""
        return float(self.weights.sum())

    @property
    def labels(self) -> int:
        """Number of labels that count."""
        return int((self.y[self.weights > 0] >= 0).sum())


def require_classes(problem: Problem, options: Options) -> None:
    """Refuse batches without class labels, and too many classes.

    Raises:
        OptionsError: ``classes_unknown``, ``too_many_classes``.
    """
    if options.classes != "certified":
        return
    loss, y = problem.objective.loss, problem.objective.targets.y
    if loss.form not in ("row", "positions") or y.is_floating_point():
        what = "y holds probabilities" if loss.form in ("row", "positions") else f"the loss is {loss.kind}"
        raise OptionsError(
            f"{what}, so that samples belong to no classes",
            code="classes_unknown",
            advice="Leave classes out, or give one integer label for each sample.",
            loss=loss.kind,
        )
    count = len(y[y >= 0].unique())
    if count > MAX_CLASSES:
        raise OptionsError(
            f"the batch has labels of {count} classes, at most {MAX_CLASSES} can be certified",
            code="too_many_classes",
            advice="Leave classes out, or send samples of the classes that matter.",
            classes=count,
            limit=MAX_CLASSES,
        )


def classes(
    problem: Problem, premises: Premises, options: Options, memory: int, monitor: Monitor
) -> list[r.ClassCurvature]:
    """Certify λ_max of each class, on the first device; what the time limit leaves out is null, with a warning.

    Args:
        problem: The analysis.
        premises: Premises of the enclosure of H, for the failure probability and the gap.
        options: Options.
        memory: Bytes to work in.
        monitor: Clock, progress and warnings.
    """
    found: dict[int, r.CertifiedInterval | None] = {}
    present, declared = _present(problem), problem.model.classes
    with monitor.optional("λ_max of all classes", otherwise=True), monitor.limited():
        for done, index in enumerate(present):
            monitor.report(done / len(present))
            found[index] = _certified(problem, _class(problem, index), premises, options, memory, monitor)
    return [
        r.ClassCurvature(
            index=index,
            label=None if declared is None else str(declared[index]),
            labels=each.labels,
            weight=each.weight,
            lambda_max=found.get(index),
        )
        for index, each in ((index, _class(problem, index)) for index in present)
    ]


def _present(problem: Problem) -> list[int]:
    """Return the classes that have a weight, in order."""
    y = problem.objective.targets.y
    known: list[int] = y[y >= 0].unique().tolist()
    return [index for index in known if _class(problem, index).weight > 0]


def _class(problem: Problem, index: int) -> _Class:
    targets, loss = problem.objective.targets, problem.objective.loss

    def adds(y: Tensor) -> Tensor:
        mass = loss.mass(y)
        return targets.weights if mass is None else targets.weights * mass

    y = torch.where(targets.y == index, targets.y, -1)
    member = (y >= 0).reshape(len(y), -1).any(dim=1)
    # Of positions, those of other classes add nothing; a sample with one label is a member or not.
    own = adds(y if y.ndim > 1 else targets.y)
    return _Class(index, y, torch.where(member, own, 0.0) / adds(targets.y).sum())


def _certified(
    problem: Problem, chosen: _Class, premises: Premises, options: Options, memory: int, monitor: Monitor
) -> r.CertifiedInterval | None:
    part = problem.at(_mean_loss(problem.objective, chosen, memory))
    product = part.hessian_product(columns=1)
    measuring = Measuring(part, options.seed, premises.failure_probability, monitor)
    rounding = measuring.rounding(product, None)
    found = certify(
        of_product(product),
        replace(premises, rounding=rounding, moments=None, both=False),
        options,
        seed=(options.seed ^ STREAM) + chosen.index,
        memory=memory,
        monitor=monitor,
        measured=partial(measuring.confirmed, product),
    )
    return None if found is None else found.lambda_max


def _mean_loss(objective: Objective, chosen: _Class, memory: int) -> Objective:
    """Return the mean loss of a class: of its samples alone, unless samples depend on the others or are too many."""
    targets = objective.targets
    weights = torch.where(chosen.weights > 0, targets.weights / chosen.weight, 0.0)
    # A sample with one label keeps it if it belongs to another class, and has the weight 0.
    y = chosen.y if chosen.y.ndim > 1 else targets.y
    rows = torch.nonzero(chosen.weights > 0).squeeze(1)
    copied = sum(tensor.nbytes for tensor in objective.inputs.values()) * len(rows) // len(weights)
    if objective.coupled or copied > COPIED_SHARE * memory:
        return replace(objective, targets=replace(targets, y=y, weights=weights))
    inputs = {name: tensor[rows.to(tensor.device)] for name, tensor in objective.inputs.items()}
    return replace(objective, inputs=inputs, targets=replace(targets, y=y[rows], weights=weights[rows]))
