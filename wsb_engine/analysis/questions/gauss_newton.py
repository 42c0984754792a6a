"""The Gauss-Newton matrix G of an analysis: its spectrum, λ_max(G) and ‖H − G‖ (mathematics.md, section 15)."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from wsb_engine import report as r
from wsb_engine.analysis.enclosure_part import certified
from wsb_engine.analysis.monitor import Monitor
from wsb_engine.analysis.problem import Problem
from wsb_engine.analysis.questions.certifying import Certified, certify, of_product
from wsb_engine.analysis.rounding import Measuring
from wsb_engine.bounds.certificates import Premises
from wsb_engine.curvature.gauss_newton import spectrum
from wsb_engine.curvature.losses import Loss
from wsb_engine.curvature.losses.parts import LossPart, NetworkPart
from wsb_engine.errors import finite
from wsb_engine.options import Options

STREAM = 0xBB67AE85
"""Separates the start vectors of both parts from those of other runs of the same seed."""


def gauss_newton(
    problem: Problem, premises: Premises, options: Options, memory: int, monitor: Monitor
) -> r.GaussNewton:
    """Compute the spectrum of G, and certify λ_max(G) and ‖H − G‖.

    Args:
        problem: The analysis.
        premises: Premises of the enclosure of H, for the failure probability and the gap.
        options: Options.
        memory: Bytes to work in.
        monitor: Clock, progress and warnings.

    Returns:
        The part; what the time limit leaves out is null, with a warning.
    """
    objective = problem.objective
    found: dict[str, r.CertifiedInterval | None] = {"lambda_max": None, "remainder": None}
    eigenvalues: list[float] | None = None
    with monitor.optional("all of the Gauss-Newton matrix", otherwise=True), monitor.limited():
        rest = _certified(problem, NetworkPart(objective.loss), premises, options, memory, monitor, both=True)
        found["remainder"] = None if rest is None else _norm(rest)
        own = _certified(problem, LossPart(objective.loss), premises, options, memory, monitor, both=False)
        found["lambda_max"] = None if own is None else own.lambda_max
        structure = None if problem.structure is None else (problem.structure.net, problem.tile)
        values = spectrum(objective, problem.logits.classes, structure, memory=memory, progress=monitor.report)
        if values is not None:
            eigenvalues = [finite(value, "an eigenvalue of G") for value in values.tolist()]
    return r.GaussNewton(order=objective.samples * problem.logits.classes, eigenvalues=eigenvalues, **found)


def _certified(
    problem: Problem, loss: Loss, premises: Premises, options: Options, memory: int, monitor: Monitor, *, both: bool
) -> Certified | None:
    """Enclose the spectrum of the Hessian that one part of the loss makes, on the first device."""
    part = problem.at(replace(problem.objective, loss=loss))
    product = part.hessian_product(columns=1)
    measuring = Measuring(part, options.seed, premises.failure_probability, monitor)
    rounding = measuring.rounding(product, None)
    return certify(
        of_product(product),
        replace(premises, rounding=rounding, moments=None, both=both),
        options,
        seed=(options.seed ^ STREAM) + both,
        memory=memory,
        monitor=monitor,
        measured=partial(measuring.confirmed, product),
    )


def _norm(found: Certified) -> r.CertifiedInterval:
    """Return the interval of the largest |λ|, which holds if those of both ends do."""
    top, bottom = found.ends.lambda_max, found.ends.lambda_min.mirrored
    chance = min(1.0, top.failure_probability + bottom.failure_probability)
    lower, upper = max(top.lower, bottom.lower, 0.0), max(top.upper, bottom.upper, 0.0)
    return certified(replace(top, lower=lower, upper=upper, failure_probability=chance, size=upper))
