"""An enclosure as a part of the report."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

from wsb_engine import report as r
from wsb_engine.bounds.certificates import Enclosures, End
from wsb_engine.spectrum.enclosure import Enclosing
from wsb_engine.spectrum.lanczos import Lanczos

CONVERGENCE_ROWS = 100
"""Most steps of an enclosure in the report."""
_Row = TypeVar("_Row")


def part(found: Enclosures, enclosing: Enclosing, factor: float) -> r.Enclosure:
    """Convert to the report's part, with every number times the factor."""
    slack, recurrence = found.slack * factor, enclosing.recurrence(found.lambda_max.how)

    is_short = len(recurrence.alphas) <= r.MAX_STEPS

    def scaled(values: Sequence[float]) -> list[float] | None:
        return [_finite(value * factor) for value in values] if is_short else None

    epsilons = scaled(recurrence.epsilons)
    return r.Enclosure(
        lambda_max=certified(found.lambda_max.scaled(factor)),
        lambda_min=certified(found.lambda_min.scaled(factor)),
        hessian_vector_products=found.products,
        rounding_slack=slack,
        rounding=r.Rounding(how=found.how, slack=slack),
        floor=found.floor,
        stopped_by=found.stopped_by,
        convergence=_convergence([*found.history, found], factor),
        basis="full" if isinstance(enclosing.lanczos, Lanczos) else "three_vectors",
        alpha=scaled(recurrence.alphas),
        beta=scaled(recurrence.betas),
        gamma=scaled(recurrence.gammas),
        epsilon=None if epsilons is None else r.Epsilon(form="worst_case", values=epsilons),
        modelled=None if found.modelled is None else r.Modelled(upper=_finite(found.modelled * factor)),
        derivation=_derivation(found, enclosing, factor, scaled),
    )


def _derivation(
    found: Enclosures, enclosing: Enclosing, factor: float, scaled: Callable[[Sequence[float]], list[float] | None]
) -> r.EnclosureDerivation:
    run, rounding = enclosing.lanczos, enclosing.premises.rounding
    first, continued = run.first_breakdown, None
    alphas, betas = (None, None) if first is None else (scaled(run.alphas[first:]), scaled(run.betas[first:]))
    if alphas and betas:
        continued = r.Continued(alpha=alphas, beta=betas)
    return r.EnclosureDerivation(
        lambda_max=_end(found.lambda_max.scaled(factor)),
        lambda_min=_end(found.lambda_min.scaled(factor)),
        operator=rounding.operator * factor,
        failure_probability=enclosing.premises.failure_probability,
        slack=enclosing.slack(found.lambda_max.how)[1] * factor,
        norms=scaled(run.norms[: first or run.steps]),
        homogeneity=run.homogeneity,
        continued=continued,
    )


def _end(end: End) -> r.EndDerivation:
    found = end.derivation
    return r.EndDerivation(
        theorem=found.theorem,
        how=end.how,
        steps=found.steps,
        inner=_finite(found.inner),
        inner_slack=_finite(found.inner_slack),
        outer_slack=_finite(found.outer_slack),
        factorisation_error=_finite(found.factorisation_error),
        failure_probability=found.failure_probability,
    )


def _convergence(rows: list[Enclosures], factor: float) -> list[r.EnclosureStep]:
    """Thin the rows evenly, keeping the last; leave out rows that certify nothing yet."""
    useful = [row for row in rows if math.isfinite(row.lambda_max.width) and math.isfinite(row.lambda_min.width)]
    return [
        r.EnclosureStep(
            products=row.products,
            lambda_max=_interval(row.lambda_max.scaled(factor)),
            lambda_min=_interval(row.lambda_min.scaled(factor)),
        )
        for row in _thinned(useful)
    ]


def _thinned(rows: list[_Row]) -> list[_Row]:
    return rows[:: -max(1, math.ceil(len(rows) / CONVERGENCE_ROWS))][::-1]


def _interval(end: End) -> r.Interval:
    return r.Interval(lower=_finite(end.lower), upper=_finite(end.upper))


def certified(end: End) -> r.CertifiedInterval:
    return r.CertifiedInterval(
        lower=_finite(end.lower),
        upper=_finite(end.upper),
        relative_gap=end.relative_gap if math.isfinite(end.relative_gap) else None,
        kind=end.kind,
        failure_probability=None if end.kind == "deterministic" else end.failure_probability,
    )


def _finite(value: float) -> float:
    """Return the value, or the largest number of its sign, which bounds anything."""
    return max(-sys.float_info.max, min(sys.float_info.max, value))


def continued(before: r.Enclosure | None, after: r.Enclosure | None) -> r.Enclosure | None:
    """Return a later enclosure of the same run with the convergence of the earlier one before its own."""
    if before is None or after is None or not after.convergence or not before.convergence:
        return after
    first = after.convergence[0].products
    rows = [row for row in before.convergence if row.products < first] + after.convergence
    return after.model_copy(update={"convergence": _thinned(rows)})
