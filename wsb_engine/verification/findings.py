"""What a verification found: for each claim of a report the number that was derived, and whether both agree."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from wsb_engine.report import Report
from wsb_engine.report.fields import Message, Name, Part

Outcome = Literal["holds", "wrong", "not_checked"]
MAX_FINDINGS = 100_000
"""Most findings of a verification."""
NO_CLAIM = ("timings", "evidence", "warnings", "engine", "optimizer.settings")
"""Parts of a report that state nothing about H: seconds, settings, the machine, and texts."""
UNCHECKED = "not checked without model and batch"


class Finding(Part):
    """One claim of a report, and what became of it."""

    path: Name
    """Path into the report; of a list of numbers that of the list."""
    outcome: Outcome
    how: Message
    """What the claim was derived from, or why it could not be."""
    claimed: float | int | bool | str | None = None
    derived: float | int | bool | str | None = None
    tolerance: float | None = None
    """Largest difference that rounding explains; null if claim and derivation have to be equal, or for a range."""


class Verification(Part):
    """All findings about one report.

    Examples:
        >>> import wsb
        >>> report = wsb.analyze(wsb.load_model("model.onnx"), wsb.load_batch("batch.npz"))
        >>> wsb.verify(report).passed
        True
        >>> forged = report.model_copy(update={"loss": report.loss.model_copy(update={"value": 0.1})})
        >>> found = wsb.verify(forged, wsb.load_model("model.onnx"), wsb.load_batch("batch.npz"))
        >>> sorted({finding.path for finding in found.wrong})
        ['loss.value']
    """

    passed: bool
    """False if anything is wrong."""
    repeated: bool
    """True if the analysis was repeated from model and batch."""
    exact: bool | None
    """True if repeated numbers had to agree to the last bit; null without model and batch."""
    findings: Annotated[list[Finding], Field(max_length=MAX_FINDINGS)]

    @property
    def wrong(self) -> list[Finding]:
        return self._with("wrong")

    @property
    def held(self) -> list[Finding]:
        return self._with("holds")

    @property
    def not_checked(self) -> list[Finding]:
        return self._with("not_checked")

    def _with(self, outcome: Outcome) -> list[Finding]:
        return [finding for finding in self.findings if finding.outcome == outcome]


class Ledger:
    """Collects findings about the claims of one report."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []

    def judge(self, path: str, holds: bool, how: str, claimed: Any = None, derived: Any = None) -> bool:
        """Record whether a claim holds."""
        return self._add(path, holds, how, claimed, derived, None)

    def refute(self, path: str, holds: bool, how: str, claimed: Any = None, derived: Any = None) -> bool:
        """Record a claim that a necessary condition refutes; one that meets it is not thereby checked."""
        return holds or self._add(path, False, how, claimed, derived, None)

    def equal(self, path: str, claimed: Any, derived: Any, how: str) -> bool:
        """Record whether a claim is what was derived."""
        return self._add(path, claimed == derived, how, claimed, derived, None)

    def near(self, path: str, claimed: float | None, derived: float | None, tolerance: float, how: str) -> bool:
        """Record whether a number is within the tolerance of the derived one; both may be missing."""
        if claimed is None or derived is None:
            return self._add(path, claimed is derived, how, claimed, derived, None)
        close = abs(claimed - derived) <= tolerance or claimed == derived
        return self._add(path, close, how, claimed, derived, tolerance)

    def within(self, path: str, claimed: float, low: float, high: float, how: str) -> bool:
        """Record whether a number lies in a range; ``derived`` is the end that it passes, or the middle."""
        derived = low if claimed < low else high if claimed > high else (low + high) / 2
        return self._add(path, low <= claimed <= high, how, claimed, derived, (high - low) / 2)

    def each(self, path: str, claimed: Sequence[float], derived: Sequence[float], tolerance: float, how: str) -> bool:
        """Record whether two lists agree; names the first entry that does not."""
        if len(claimed) != len(derived):
            return self._add(path, False, f"{how}: number of entries", len(claimed), len(derived), None)
        pairs = enumerate(zip(claimed, derived, strict=True))
        first = next((i for i, (a, b) in pairs if not (a == b or abs(a - b) <= tolerance)), None)
        if first is None:
            return self._add(path, True, how, None, None, tolerance)
        return self._add(f"{path}.{first}", False, how, claimed[first], derived[first], tolerance)

    def skip(self, path: str, why: str) -> None:
        """Record a claim that can't be derived."""
        self.findings.append(Finding(path=path[:8192], outcome="not_checked", how=why))

    def complete(self, report: Report, why: str) -> None:
        """Record every number and digest of the report that no finding is about as not checked."""
        known = {finding.path for finding in self.findings}
        checked = {finding.path for finding in self.findings if finding.outcome != "not_checked"}
        self.findings = [each for each in self.findings if each.outcome != "not_checked" or each.path not in checked]
        known |= {path.rpartition(".")[0] for path in known if path.rpartition(".")[2].isdecimal()}
        for path in leaves(report):
            parents = {path[:i] for i in [*_dots(path), len(path)]}
            if not parents & known and not path.startswith(NO_CLAIM):
                self.skip(path, why)

    def result(self, *, repeated: bool, exact: bool | None) -> Verification:
        passed, found = all(finding.outcome != "wrong" for finding in self.findings), self.findings
        if len(found) > MAX_FINDINGS:
            found = sorted(found, key=lambda finding: finding.outcome != "wrong")[:MAX_FINDINGS]
        return Verification(passed=passed, repeated=repeated, exact=exact, findings=found)

    def _add(self, path: str, holds: bool, how: str, claimed: Any, derived: Any, tolerance: float | None) -> bool:
        known = None if tolerance is None or not math.isfinite(tolerance) else tolerance
        found = Finding(
            path=path[:8192],
            outcome="holds" if holds else "wrong",
            how=how,
            claimed=_shown(claimed),
            derived=_shown(derived),
            tolerance=known,
        )
        self.findings.append(found)
        return holds


def leaves(value: Any, path: str = "") -> Iterator[str]:
    """Yield the paths of all numbers and digests in a report; a list of numbers counts as one."""
    below = f"{path}." if path else ""
    if isinstance(value, BaseModel):
        for name, field in value:
            yield from leaves(field, f"{below}{name}")
    elif isinstance(value, dict):
        for name, field in value.items():
            yield from leaves(field, f"{below}{name}")
    elif value is None or (
        isinstance(value, list | tuple) and not any(isinstance(each, float | int | BaseModel | list) for each in value)
    ):
        return
    elif isinstance(value, list | tuple) and any(isinstance(each, BaseModel | list) for each in value):
        for index, each in enumerate(value):
            yield from leaves(each, f"{below}{index}")
    elif isinstance(value, list | tuple | float | int) or path.endswith("sha256"):
        yield path


def _dots(path: str) -> list[int]:
    return [index for index, letter in enumerate(path) if letter == "."]


def _shown(value: Any) -> float | int | bool | str | None:
    """Return a value as a finding can hold it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)
    if value is None or isinstance(value, int | str):
        return value
    return repr(value)[:1000]
