"""Inputs and outputs of `wsb check`: reads policy and baseline, writes the report, the verdict and renderings."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from service.policies import Policy, PolicyError, Verdict, load_policy
from service.policies.evaluation import BASELINE_DECIDED, PRODUCE_AGAIN
from service.rendering.comment import render_comment
from service.rendering.registry import MARKDOWN, RENDERINGS
from wsb_engine.presentation.headline import Yardstick
from wsb_engine.report import SCHEMA_VERSION, Report

STDOUT = Path("-")
MAX_REPORT_BYTES = 1 << 30


class UnusableError(Exception):
    """The policy, the baseline or an output file can't be used; raised before anything is analysed."""


@dataclass(frozen=True)
class Outputs:
    """Path of each output by its name; - for stdout."""

    paths: Mapping[str, Path]

    @property
    def uses_stdout(self) -> bool:
        return STDOUT in self.paths.values()

    def check(self) -> None:
        """Raise UnusableError if a file can't be written or two outputs go to stdout."""
        if list(self.paths.values()).count(STDOUT) > 1:
            raise UnusableError("Only one output can go to stdout.")
        for path in self.paths.values():
            if path != STDOUT and not os.access(path if path.exists() else path.parent, os.W_OK):
                raise UnusableError(f"{path} can't be written.")

    def write(
        self,
        report: Report,
        verdict: Verdict | None = None,
        baseline: Report | None = None,
        yardstick: Yardstick | None = None,
    ) -> None:
        """Write the requested outputs and, with a verdict, the step summary of GitHub Actions.

        Raises:
            OSError: if a file can't be written.
        """
        for name, path in self.paths.items():
            write_text(path, _written(name, report, verdict, baseline, yardstick))
        if verdict is not None and (summary := os.environ.get("GITHUB_STEP_SUMMARY")):
            with open(summary, "a", encoding="utf-8") as file:
                file.write(MARKDOWN.render(report, verdict, yardstick) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file, or to stdout for -."""
    if path == STDOUT:
        sys.stdout.write(text)
    else:
        path.write_text(text, encoding="utf-8")


def _written(
    name: str, report: Report, verdict: Verdict | None, baseline: Report | None, yardstick: Yardstick | None
) -> str:
    if name == "json":
        return report.model_dump_json(indent=2) + "\n"
    if name == "verdict":
        return "" if verdict is None else verdict.model_dump_json(indent=2) + "\n"
    if name == "comment":
        return "" if verdict is None else render_comment(report, verdict, baseline)
    return next(each for each in RENDERINGS if each.name == name).render(report, verdict, yardstick)


def read_policy(path: Path, *, with_baseline: bool) -> Policy:
    """Read a policy that can be applied.

    Raises:
        UnusableError: if it is invalid, or has a rule that needs a baseline and there is none.
    """
    try:
        policy = load_policy(path)
    except PolicyError as error:
        raise UnusableError(f"{path} is not a valid policy:\n{error}") from error
    except OSError as error:
        raise UnusableError(f"{path} can't be read: {error.strerror}") from error
    if not with_baseline and (rule := policy.unmet_baseline()) is not None:
        raise UnusableError(
            f"{path}: rule {policy.rule.index(rule) + 1} compares {rule.metric} with a baseline: give one with "
            '--baseline or --baseline-name, or set on_missing = "pass" in the rule until there is one.'
        )
    return policy


def read_baseline(path: Path, policy: Policy) -> Report:
    """Read a report to compare with.

    Raises:
        UnusableError: as ``read_report``, or if it is not one that the policy can compare with.
    """
    report = read_report(path)
    if policy.refuses(report):
        raise UnusableError(f"{path}: {BASELINE_DECIDED} [baseline_decided]\n{PRODUCE_AGAIN}")
    return report


def read_report(path: Path) -> Report:
    """Read a report that was written earlier.

    Raises:
        UnusableError: if it can't be read, is larger than ``MAX_REPORT_BYTES``, is not a report, or is of another
            version.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_REPORT_BYTES + 1)
    except OSError as error:
        raise UnusableError(f"{path} can't be read: {error.strerror}. [report_unreadable]") from error
    if len(content) > MAX_REPORT_BYTES:
        raise UnusableError(f"{path} is larger than {MAX_REPORT_BYTES} bytes. [report_too_large]")
    try:
        report = Report.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UnusableError(
            f"{path} is not a report: {place + ': ' if place else ''}{first['msg']}. [report_invalid]"
        ) from error
    if report.schema_version.split(".")[0] != SCHEMA_VERSION.split(".")[0]:
        known = f"{SCHEMA_VERSION.split('.')[0]}.x"
        raise UnusableError(
            f"{path} has report schema {report.schema_version}; this version reads {known}. [report_version]"
        )
    return report


def describe(verdict: Verdict) -> str:
    """Describe the verdict, a line for each rule and one for their outcome."""
    rows: list[tuple[str, str, str | None]] = [
        (rule.outcome.upper() if rule.outcome != "pass" else "pass", rule.message, rule.advice)
        for rule in verdict.rules
    ]
    code = f" [{verdict.code}]" if verdict.code else ""
    advice = None if any(rule.advice == verdict.advice for rule in verdict.rules) else verdict.advice
    rows.append(("verdict", f"{verdict.outcome}{code}: {verdict.message}", advice))
    lines = []
    for name, text, hint in rows:
        lines.append(f"{name:<10}{text}")
        if hint:
            lines.append(f"{'':<10}{hint}")
    return "\n".join(lines)
