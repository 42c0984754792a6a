"""Questions about where the curvature is, in the order of their cost; each is off unless its option asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from wsb_engine import report as r
from wsb_engine.analysis import krylov, parts
from wsb_engine.analysis.monitor import Monitor
from wsb_engine.analysis.problem import Problem
from wsb_engine.analysis.questions.alignment import alignment
from wsb_engine.analysis.questions.classes import classes, require_classes
from wsb_engine.analysis.questions.gauss_newton import gauss_newton
from wsb_engine.analysis.questions.groups import Blocks, Group, groups_of, layers_of, require_few
from wsb_engine.analysis.rounding import Measuring
from wsb_engine.bounds.certificates import Premises
from wsb_engine.curvature.closed_form.sums import ClosedForm
from wsb_engine.curvature.products.autodiff import HessianProduct
from wsb_engine.options import Options


@dataclass(frozen=True)
class Known:
    """What the stages before certify and share."""

    product: HessianProduct
    """Products of H with single vectors."""
    shared: krylov.Krylov | None
    premises: Premises
    measuring: Measuring
    closed: ClosedForm | None

    @property
    def confirmed(self) -> Premises:
        """The premises with all that was measured of rounding."""
        if self.shared is None or self.shared.confirmed is None:
            return self.premises
        return replace(self.premises, rounding=self.shared.confirmed[1])

    def left(self, memory: int) -> int:
        """Return the bytes that the basis of the shared run leaves."""
        basis = None if self.shared is None else self.shared.basis
        return memory if basis is None else memory - basis.steps * basis.parameters * basis.dtype.itemsize


def require(problem: Problem, options: Options) -> None:
    """Refuse what the options ask for and the model or the batch does not have, before any long computation.

    Raises:
        OptionsError: ``parameter_pattern_unmatched``, ``too_many_layers``, ``classes_unknown``, ``too_many_classes``.
    """
    require_few(problem, options)
    require_classes(problem, options)


def local(problem: Problem, options: Options, known: Known, monitor: Monitor) -> dict[str, Any]:
    """Answer what the options ask for.

    Returns:
        Parts of the report by name; ``layers`` always, the others if asked for.
    """
    premises = known.confirmed
    layers = parts.layers(problem, known.closed, known.premises.rounding)
    found: dict[str, Any] = {"layers": layers}
    free = known.left(problem.memory)
    blocks = Blocks(problem, known.product, premises, known.measuring, options, free, monitor)
    if options.layers == "certified":
        with monitor.phase("layers"):
            groups = layers_of(problem, known.closed)
            intervals = _intervals(blocks, groups, 0, monitor)
            found["layers"] = _with_intervals(problem, layers, groups, intervals)
    if options.groups:
        with monitor.phase("groups"):
            groups = groups_of(problem, options)
            # After those of all layers, so that no two blocks share a start vector.
            found["groups"] = [
                r.GroupCurvature(
                    name=group.name,
                    parameters=group.count(problem.objective.selected),
                    tensors=len(group.tensors),
                    lambda_max=interval,
                )
                for group, interval in zip(
                    groups, _intervals(blocks, groups, len(layers_of(problem)), monitor), strict=True
                )
            ]
    if options.classes == "certified":
        with monitor.phase("classes"):
            found["classes"] = classes(problem, premises, options, free, monitor)
    if options.gauss_newton:
        with monitor.phase("gauss_newton"):
            found["gauss_newton"] = gauss_newton(problem, premises, options, free, monitor)
    if options.alignment and known.shared is not None:
        with monitor.phase("alignment"), monitor.optional("alignment", otherwise=True), monitor.limited():
            found["alignment"] = alignment(problem, known.shared, premises, options, free, monitor)
    return found


def _intervals(
    blocks: Blocks, groups: Sequence[Group], first: int, monitor: Monitor
) -> list[r.CertifiedInterval | None]:
    """Certify one block after another; those that the time limit leaves out are None, with a warning."""
    found: list[r.CertifiedInterval | None] = []
    with monitor.optional("λ_max of all blocks", otherwise=True), monitor.limited():
        found.extend(blocks.certified(groups, first))
    return found + [None] * (len(groups) - len(found))


def _with_intervals(
    problem: Problem,
    layers: Sequence[r.LayerCurvature] | None,
    groups: Sequence[Group],
    intervals: Sequence[r.CertifiedInterval | None],
) -> list[r.LayerCurvature]:
    """Add the intervals to what the closed form knows of the layers, or list layers without it."""
    known = layers or [
        r.LayerCurvature(
            name=group.name,
            parameters=group.count(problem.objective.selected),
            trace=None,
            frobenius_squared=None,
            wolkowicz_styan_upper=None,
        )
        for group in groups
    ]
    return [layer.model_copy(update={"lambda_max": interval}) for layer, interval in zip(known, intervals, strict=True)]
