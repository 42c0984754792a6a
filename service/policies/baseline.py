"""Whether two reports are comparable: the same method, parameters, batch, loss and precision."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pydantic import JsonValue

from service.policies.metrics import about_moments
from service.policies.policy import Mismatch, Policy
from service.policies.schemas import BaselineComparison, Difference
from wsb_engine.report import Report

NAMED_TENSORS = 5
"""Most tensors that a difference names."""
NAMED_NUMBERS = 20
"""Most numbers of a list that a difference spells out."""
LOSS_SETTINGS = ("kind", "label_smoothing", "class_weights", "pos_weight", "ignore_index", "focal_gamma")
"""What makes a loss another one."""


def compare(policy: Policy, report: Report, baseline: Report) -> BaselineComparison:
    """Find the differences that matter, and whether the policy allows them all."""
    metrics = [rule.metric for rule in policy.rule if rule.needs_baseline]
    differences = list(_differences(metrics, report, baseline))
    names = {difference.name for difference in differences}
    return BaselineComparison(
        compatible=names <= set(policy.allow_mismatch),
        differences=differences,
        allowed=[name for name in policy.allow_mismatch if name in names],
    )


def _differences(metrics: Sequence[str], report: Report, baseline: Report) -> Iterator[Difference]:
    """Find the differences that matter to rules on these metrics.

    An enclosure is certified whichever moments it rests on, so their method matters only to rules on what they provide.
    """
    pairs: list[tuple[Mismatch, str, JsonValue, JsonValue]] = []
    # If one report has no such part, its numbers are missing, which the rule reports.
    if any(map(about_moments, metrics)) and report.moments is not None and baseline.moments is not None:
        pairs.append(("method", "moments.method", report.moments.method, baseline.moments.method))
    spectrum = any(metric.startswith("spectrum.") for metric in metrics)
    if spectrum and report.spectrum is not None and baseline.spectrum is not None:
        pairs.append(("method", "spectrum.method", report.spectrum.method, baseline.spectrum.method))
    about_population = any(metric.startswith("population.") for metric in metrics)
    if about_population and report.population is not None and baseline.population is not None:
        levels = report.population.confidence, baseline.population.confidence
        pairs.append(("method", "population.confidence", *levels))
    scaled = any(metric.startswith("scaled.") for metric in metrics)
    if scaled and report.scaled is not None and baseline.scaled is not None:
        pairs.append(("method", "scaled.scaling", report.scaled.scaling, baseline.scaled.scaling))
    first, second = report.optimizer, baseline.optimizer
    if any(metric.startswith("optimizer.") for metric in metrics) and first is not None and second is not None:
        settings = (first.settings.model_dump(mode="json"), second.settings.model_dump(mode="json"))
        pairs += [("method", "optimizer.kind", first.kind, second.kind), ("method", "optimizer.settings", *settings)]
    pairs += [
        ("parameters", "model.parameters.count", report.model.parameters.count, baseline.model.parameters.count),
        ("parameters", "model.parameters.tensors", *_tensors(report, baseline)),
        ("batch", "batch.sha256", report.batch.sha256, baseline.batch.sha256),
        ("batch", "batch.samples", report.batch.samples, baseline.batch.samples),
        ("batch", "batch.classes", report.batch.classes, baseline.batch.classes),
        ("batch", "batch.positions", report.batch.positions, baseline.batch.positions),
        *(("loss", f"loss.{name}", *_settings(name, report, baseline)) for name in LOSS_SETTINGS),
        ("dtype", "engine.dtype", report.engine.dtype, baseline.engine.dtype),
    ]
    for name, path, ours, theirs in pairs:
        if ours != theirs:
            yield Difference(name=name, path=path, candidate=ours, baseline=theirs)


def _settings(name: str, report: Report, baseline: Report) -> tuple[JsonValue, JsonValue]:
    ours, theirs = (getattr(each.loss, name) for each in (report, baseline))
    if not isinstance(ours, list) or not isinstance(theirs, list) or len(ours) <= NAMED_NUMBERS or ours == theirs:
        return ours, theirs
    differing = (i for i, (one, other) in enumerate(zip(ours, theirs, strict=False)) if one != other)
    first = next(differing, min(len(ours), len(theirs)))
    return _from(ours, first), _from(theirs, first)


def _from(numbers: list[float], first: int) -> JsonValue:
    """Say how many numbers there are, and which is the first that differs."""
    return f"{len(numbers)} numbers" + (f", number {first} is {numbers[first]!r}" if first < len(numbers) else "")


def _tensors(report: Report, baseline: Report) -> tuple[JsonValue, JsonValue]:
    """List the tensors that only one of the two has, each by name and shape."""
    ours, theirs = (
        {f"{tensor.name} {tensor.shape}": None for tensor in each.model.parameters.tensors}
        for each in (report, baseline)
    )
    return _named(ours.keys() - theirs.keys()), _named(theirs.keys() - ours.keys())


def _named(tensors: set[str]) -> list[JsonValue]:
    names: list[JsonValue] = [*sorted(tensors)]
    rest = len(names) - NAMED_TENSORS
    return names if rest <= 0 else [*names[:NAMED_TENSORS], f"and {rest} more"]
