"""Two reports side by side: their numbers, the differences, and what is certain about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from markupsafe import Markup
from starlette.concurrency import run_in_threadpool

from service import rendering
from service.analyses import representations, service
from service.analyses.errors import not_found
from service.analyses.listing import Listing, listed
from service.analyses.schemas import Analysis
from service.context import Context, InContext
from service.http.security import InTenant
from service.policies import Policy, PolicyError, evaluate
from service.policies.baseline import compare
from service.policies.metrics import Measurement, measure
from service.policies.policy import parse_toml
from service.rendering import plots, wording
from service.rendering.svg import Caption
from service.web.pages import page_on_thread, see
from wsb_engine.presentation import bounds
from wsb_engine.presentation.numbers import ends, interval, number, rounded
from wsb_engine.report import Interval, Report

MAX_CHOICES = 100
"""Analyses to choose from: the newest that have a report."""

_COMPARED = 2

router = APIRouter(include_in_schema=False)

Picked = Annotated[Sequence[str], Query(max_length=MAX_CHOICES)]
"""Analyses that were ticked in the list."""

_NUMBERS = (
    ("λ_max", "enclosure.lambda_max"),
    ("λ_min", "enclosure.lambda_min"),
    ("λ_max of the distribution (asymptotic)", "population.lambda_max"),
    *(
        (f"{words.title}, upper bound on λ_max", f"bounds_list.{name}.lambda_max.upper")
        for name, words in bounds.WORDS.items()
    ),
    ("Largest eigenvalue of the spectrum", "spectrum.eigenvalues.0"),
    ("Trace, tr H", "moments.trace"),
    ("Gauss-Newton trace, tr G", "moments.gauss_newton_trace"),
    ("‖H‖_F²", "moments.frobenius_squared"),
    ("Loss", "loss.value"),
    ("Gradient norm", "loss.gradient_norm"),
    ("Accuracy", "loss.accuracy"),
    ("Parameters", "model.parameters.count"),
    ("Samples", "batch.samples"),
)
_ANY_POLICY = Policy.model_validate({"rule": [{"metric": "moments.trace", "max_increase": 0.0}]})
"""Placeholder if no policy is given: shows differences in the method of the moments too."""


@dataclass(frozen=True)
class Row:
    """One number of both reports, as text to show."""

    label: str
    first: str
    second: str
    difference: str
    relative: str


@dataclass(frozen=True)
class Chosen:
    """A chosen analysis and its report."""

    analysis: Analysis
    report: Report


@router.get("/compare")
async def compare_analyses(
    request: Request,
    context: InContext,
    tenant: InTenant,
    a: str = "",
    b: str = "",
    policy: str = "",
    pick: Picked = (),
) -> Response:
    if len(pick) == _COMPARED:
        first_id, second_id = await _by_age(context, tenant, pick)
        return see(request, "compare_analyses", query={"a": first_id, "b": second_id})
    choices = await listed(context, tenant, Listing(states=["succeeded"]), limit=MAX_CHOICES)
    errors: dict[str, str] = {"a": f"Tick two analyses to compare, not {len(pick)}."} if pick else {}
    first = await _chosen(context, tenant, a, errors, "a")
    second = await _chosen(context, tenant, b, errors, "b")
    rules = await run_in_threadpool(_policy, policy, errors)
    compared: dict[str, Any] = {"rows": None, "verdict": None, "policy": policy, "errors": errors}
    if first is not None and second is not None:
        compared |= await run_in_threadpool(_compared, first, second, rules)
    status = HTTPStatus(422) if errors else HTTPStatus.OK
    newest = await run_in_threadpool(lambda: [Analysis.of(row) for row in choices.rows])
    shown = _offered(newest, first, second)
    return await page_on_thread(request, "compare.html", status, choices=shown, first=first, second=second, **compared)


async def _by_age(context: Context, tenant: str, picked: Sequence[str]) -> list[str]:
    """Order two analyses of the list: the older is the baseline.

    Raises:
        AnalysisNotFoundError: if the tenant has no such analysis.
    """
    found = []
    async with context.database.transaction() as session:
        for text in picked:
            analysis = service.parse_id(text)
            if analysis is None:
                raise not_found(text)
            found.append(await service.find(session, tenant, analysis))
    return [str(row.id) for row in sorted(found, key=lambda row: row.sequence)]


async def _chosen(context: Context, tenant: str, text: str, errors: dict[str, str], name: str) -> Chosen | None:
    """Find the analysis with this identifier; None, with an error for its field, if it has no readable report.

    Raises:
        AnalysisNotFoundError: if the tenant has no such analysis.
    """
    if not text:
        return None
    analysis = service.parse_id(text)
    if analysis is None:
        errors[name] = "This is not the identifier of an analysis."
        return None
    row, stored = await service.fetch(context, tenant, analysis)
    report = None if stored is None else await run_in_threadpool(representations.parsed, stored.body)
    if report is None:
        errors[name] = "This analysis has no report that can be read."
        return None
    return Chosen(Analysis.of(row), report)


def _offered(newest: list[Analysis], *chosen: Chosen | None) -> list[Analysis]:
    """Return the newest analyses and the chosen ones, however old."""
    known = {analysis.id for analysis in newest}
    return newest + [
        each.analysis
        for i, each in enumerate(chosen)
        if each is not None and each.analysis.id not in known and each not in chosen[:i]
    ]


def _policy(text: str, errors: dict[str, str]) -> Policy | None:
    try:
        return parse_toml(text.replace("\r\n", "\n").encode()) if text.strip() else None
    except PolicyError as error:
        errors["policy"] = str(error)
        return None


def _compared(first: Chosen, second: Chosen, policy: Policy | None) -> dict[str, Any]:
    """Compute what the page shows of two reports; the first is the baseline of the second."""
    verdict, both = None, (("A", first.report), ("B", second.report))
    if policy is not None:
        rate = second.analysis.options.learning_rate
        verdict = rendering.render_verdict(evaluate(policy, second.report, first.report, rate))
    return {
        "rows": list(filter(None, (_row(label, metric, first.report, second.report) for label, metric in _NUMBERS))),
        "verdict": verdict,
        "decision": decision(first.report, second.report),
        "doubts": {name: told for name, report in both if (told := wording.doubts(report))},
        "withheld": {name: why for name, report in both if (why := wording.withheld(report))},
        "plot": _plot(first, second),
        # In how the reports were produced, which may make their numbers incomparable.
        "differences": compare(_ANY_POLICY, second.report, first.report).differences,
    }


def decision(first: Report, second: Report) -> tuple[str, str]:
    """Decide which of two classifiers is certainly sharper: a heading, and the reason."""
    doubtful = " and ".join(name for name, report in (("A", first), ("B", second)) if wording.doubts(report))
    if doubtful:
        return "Not decided", f"The numbers of {doubtful} can't be relied on."
    if first.lambda_max is None or second.lambda_max is None:
        return "Not decided", "One of the reports has no bound on λ_max."
    how = " and ".join(dict.fromkeys([wording.source(first), wording.source(second)]))
    ours, theirs = first.lambda_max.interval, second.lambda_max.interval
    chance = (ours.failure_probability or 0.0) + (theirs.failure_probability or 0.0)
    but = f", except with probability at most {number(chance)}" if chance else ""
    for sharper, other, high, low in (("A", "B", ours, theirs), ("B", "A", theirs, ours)):
        if high.lower > low.upper:
            least, most = ends(high)[0], ends(low)[1]
            text = f"λ_max of {sharper} is at least {least}, that of {other} at most {most}{but} (by {how})."
            return f"{sharper} is sharper", text
    return "Not decided", f"The intervals of λ_max overlap (by {how}): which classifier is sharper is not certain."


def _row(label: str, metric: str, first: Report, second: Report) -> Row | None:
    ours, theirs = measure(first, metric), measure(second, metric)
    if ours is None and theirs is None:
        return None
    if ours is None or theirs is None:
        return Row(label, _text(ours), _text(theirs), "—", "")
    low, high = theirs.low - ours.high, theirs.high - ours.low
    enclosed = ours.enclosed or theirs.enclosed
    return Row(label, _text(ours), _text(theirs), _written(low, high, enclosed=enclosed), _relative(ours, low, high))


def _text(found: Measurement | None) -> str:
    return "—" if found is None else _written(found.low, found.high, enclosed=found.enclosed)


def _written(low: Fraction, high: Fraction, *, enclosed: bool) -> str:
    if enclosed:
        return interval(Interval(lower=rounded(low), upper=rounded(high)))
    return f"{int(low):,}" if low.denominator == 1 else number(rounded(low), 9)


def _relative(ours: Measurement, low: Fraction, high: Fraction) -> str:
    """The midpoint of the difference as a percentage of the first number, or that its sign is not certain."""
    if low <= 0 <= high:
        return "the same" if low == high else "sign not certain"
    middle = (ours.low + ours.high) / 2
    if middle == 0:
        return ""
    share = number(rounded(100 * (low + high) / 2 / abs(middle)), 3)
    return f"{share if share.startswith('-') else f'+{share}'} %"


def _plot(first: Chosen, second: Chosen) -> Markup | None:
    ranges = []
    for style, name, chosen in ((1, "A", first), (2, "B", second)):
        closest = chosen.report.lambda_max
        if closest is not None:
            ends = closest.interval
            ranges.append(plots.LabelledInterval(f"λ_max of {name}", ends.lower, ends.upper, style))
    if not ranges:
        return None
    said = "; ".join(f"{each.label}: {interval(each)}" for each in ranges)
    return plots.number_line(ranges, caption=Caption("compared", "λ_max of both", f"{said}."))
