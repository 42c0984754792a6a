"""How many products of all samples the questions are expected to take, for estimates."""

from __future__ import annotations

from wsb_engine.analysis.inputs import EXPECTED_PRODUCTS
from wsb_engine.analysis.problem import Problem
from wsb_engine.analysis.questions.groups import groups_of, layers_of
from wsb_engine.analysis.rounding import MOVED, PERTURBATIONS
from wsb_engine.curvature import gauss_newton
from wsb_engine.curvature.cost import solver_operations
from wsb_engine.options import Options
from wsb_engine.spectrum.run import HOMOGENEITY_STEPS

CONFIRMING = 2
"""Fresh products with the outer Ritz vectors."""
PARTS = 2
"""G, and the rest of H."""


def products(problem: Problem, options: Options, *, is_measured: bool) -> dict[str, int]:
    """Return the products that each phase is expected to take, by name; those of options that are off are left out.

    Args:
        problem: The analysis.
        options: Its options.
        is_measured: True if rounding is measured by perturbation.
    """
    selected, found = problem.objective.selected, {}
    repeated = (PERTURBATIONS + MOVED) * is_measured
    more = len(HOMOGENEITY_STEPS) + CONFIRMING
    whole = _steps(options, problem.objective.parameters) + more + 3 * repeated
    blocks = {
        "layers": layers_of(problem) if options.layers == "certified" else [],
        "groups": groups_of(problem, options),
    }
    for name, groups in blocks.items():
        if groups:
            found[name] = sum(
                _steps(options, group.count(selected)) + more + is_measured + repeated for group in groups
            )
    if options.classes == "certified":
        found["classes"] = whole
    if options.gauss_newton:
        found["gauss_newton"] = PARTS * whole
    if options.alignment:
        computed = options.spectrum == "top"
        found["alignment"] = _steps(options, problem.objective.parameters) + (0 if computed else options.max_products)
    return found


def further_operations(problem: Problem, phase: str) -> float:
    """Return the operations of a phase besides its products: Jacobians of the logits, and an eigensolver."""
    objective, C = problem.objective, problem.logits.classes
    order = min(objective.samples * C, objective.parameters)
    if phase != "gauss_newton" or not objective.loss.convex or order > gauss_newton.MAX_ORDER:
        return 0.0
    jacobians = objective.samples * problem.footprint.operations * C * 2 / 3
    return jacobians + 2.0 * order**2 * objective.parameters + solver_operations(order, objective.device)


def _steps(options: Options, order: int) -> int:
    return min(EXPECTED_PRODUCTS, options.max_products, order)
