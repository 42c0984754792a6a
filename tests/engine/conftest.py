"""Tells at the end of a run how narrow the intervals of random networks were, from all processes together."""

from __future__ import annotations

import statistics
from collections import defaultdict

import pytest
from support.gaps import GAPS


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    found: dict[str, list[float]] = defaultdict(list)
    for reports in (terminalreporter.getreports("passed"), terminalreporter.getreports("failed")):
        for report in reports:
            for name, value in report.user_properties:
                if name == GAPS:
                    for kind, gaps in value.items():
                        found[kind] += gaps
    if found:
        terminalreporter.section("random networks")
    for kind, gaps in sorted(found.items()):
        if gaps:
            terminalreporter.line(f"{kind}: {len(gaps)} networks, median gap {statistics.median(gaps):.1e}")
