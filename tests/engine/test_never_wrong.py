"""No certificate excludes the truth: random networks against Hessians in ball arithmetic."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Callable

import pytest
import torch
from flint import arb
from support.forms import thinned
from support.gaps import GAPS
from support.networks import Case, case

import wsb_engine as wsb

NETWORKS = int(os.environ.get("WSB_TEST_NETWORKS", "80"))
PARAMETERS = int(os.environ.get("WSB_TEST_PARAMETERS", "25"))
GROUPS = 10
TINIEST = arb(5e-324)
"""What is smaller than every number counts as 0."""


def violations(each: Case, report: wsb.Report) -> list[str]:
    """Which intervals of a report exclude the truth, in exact comparisons."""
    top, bottom = each.exact()
    found = []
    claims = []
    claims += [(bound.name, bound.lambda_max, bound.lambda_min) for bound in report.named_bounds]
    if report.enclosure is not None:
        claims.append(("enclosure", report.enclosure.lambda_max, report.enclosure.lambda_min))
    for name, largest, smallest in claims:
        for end, lower, upper, truth in (
            ("λ_max", largest.lower, largest.upper, top),
            ("−λ_min", -smallest.upper, -smallest.lower, bottom),
        ):
            if arb(upper) + TINIEST < truth.below or arb(lower) - TINIEST > truth.above:
                found.append(f"{name}: {end} in [{lower!r}, {upper!r}] excludes {truth.below.str(25)}")
    bounds = (None if report.spectrum is None else report.spectrum.upper_bounds) or [None]
    if bounds[0] is not None and arb(bounds[0]) + TINIEST < top.below:
        found.append(f"top: {bounds[0]!r} is below {top.below.str(25)}")
    return found


@pytest.mark.parametrize("group", thinned(range(GROUPS), 5))
def test_no_interval_excludes_the_truth(group: int, record_property: Callable[[str, object], None]) -> None:
    torch.set_num_threads(1)
    gaps, missing, wrong, count = defaultdict(list), [], [], 0
    for seed in range(group, NETWORKS, GROUPS):
        each = case(seed, PARAMETERS)
        count += 1
        try:
            report = wsb.analyze(each.classifier(), each.batch, each.options)
        except wsb.EngineError as error:
            if error.code == "underflow":  # the numbers do not fit the dtype
                continue
            missing.append(f"{each.description}: {error}")
            continue
        wrong += [f"{each.description}: {text}" for text in violations(each, report)]
        failed = [check.name for check in report.checks if not check.passed]
        if failed:
            wrong.append(f"{each.description}: failed {failed}")
        if report.enclosure is None:
            missing.append(f"{each.description}: {[w.message for w in report.warnings]}")
            continue
        end = report.enclosure.lambda_max
        if end.relative_gap is not None:
            gaps[f"{each.options.dtype} {end.kind} {report.enclosure.rounding.how}"].append(end.relative_gap)
    # The summary at the end of the run is made of them.
    record_property(GAPS, {**gaps, "without an interval": [math.inf] * len(missing)})
    assert not wrong, "\n".join(wrong)
    assert len(missing) <= max(1, 0.05 * count), "\n".join(missing)
