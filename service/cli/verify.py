"""The command `wsb verify`: derive the numbers of a report again."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli.ending import Exit, end
from service.cli.needs import read_settings

if TYPE_CHECKING:
    from service.policies import Verdict
    from wsb_engine.report import Report
    from wsb_engine.verification.findings import Finding, Verification

SHOWN = 50
"""Most wrong claims, and most kinds of unchecked ones, that are listed without --verbose."""


def verify(
    report: Annotated[Path, typer.Argument(dir_okay=False, help="Report, written by --json or fetched from a server.")],
    model: Annotated[
        Path | None, typer.Argument(exists=True, readable=True, help="Model that the report is about.")
    ] = None,
    batch: Annotated[
        Path | None, typer.Argument(exists=True, readable=True, help="Batch that the report is about.")
    ] = None,
    verdict: Annotated[
        Path | None,
        typer.Option(dir_okay=False, help="Verdict on the report, written by --verdict, or an analysis of the API."),
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Report that the verdict compares with.")
    ] = None,
    optimizer_state: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="State of the optimizer that the analysis had (.safetensors)."),
    ] = None,
    json: Annotated[Path | None, typer.Option(dir_okay=False, help="Write all findings here; - for stdout.")] = None,
    timeout: Annotated[float | None, typer.Option(min=0.001, help="Wall-clock limit in seconds.")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="List every claim and how it was derived.")] = False,
) -> None:
    """Derive every number of a report again, and say which do not hold.

    From the report alone: bounds by their theorems in ball arithmetic, sums, order, checks, verdicts. With model and
    batch the analysis is repeated from its seed.

    Exit codes: 0 all that was checked holds, 1 something is wrong, 2 invalid input, 3 not verified.
    """
    import wsb_engine
    from service.cli.outputs import STDOUT, Outputs, UnusableError, read_report, write_text
    from service.cli.running import verified
    from service.policies.rederivation import check_verdict
    from wsb_engine.verification.findings import Ledger, Verification

    if (model is None) != (batch is None):
        end(
            "Give the model and the batch, or neither to check what the report alone allows. [batch_missing]",
            Exit.INVALID,
        )
    if baseline is not None and verdict is None:
        end("--baseline is what a --verdict compares with: give both. [verdict_missing]", Exit.INVALID)
    try:
        Outputs({} if json is None else {"json": json}).check()
        given = read_report(report)
        ruling = None if verdict is None else read_verdict(verdict)
        compared = None if baseline is None else read_report(baseline)
    except UnusableError as error:
        end(str(error), Exit.INVALID)
    if model is not None and batch is not None:
        settings = read_settings()
        found = verified(model, batch, given, settings=settings, timeout=timeout, optimizer_state=optimizer_state)
    else:
        found = wsb_engine.verify(given)
    if ruling is not None:
        ledger = Ledger()
        check_verdict(ruling, given, compared, ledger)
        added = ledger.result(repeated=found.repeated, exact=found.exact)
        findings = [*found.findings, *added.findings]
        found = Verification(
            passed=found.passed and added.passed, repeated=found.repeated, exact=found.exact, findings=findings
        )
    if json != STDOUT:
        typer.echo("\n".join(described(found, given, verbose=verbose)))
    if json is not None:
        try:
            write_text(json, found.model_dump_json(indent=2) + "\n")
        except OSError as error:
            end(f"{error.filename} can't be written: {error.strerror}", Exit.INVALID)
    raise typer.Exit(Exit.DONE if found.passed else Exit.FAILED)


def read_verdict(path: Path) -> Verdict:
    """Read a verdict, or the one of an analysis of the API.

    Raises:
        UnusableError: if it can't be read or is neither.
    """
    from json import loads

    from pydantic import ValidationError

    from service.cli.outputs import MAX_REPORT_BYTES, UnusableError
    from service.policies import Verdict

    try:
        with path.open("rb") as file:
            content = file.read(MAX_REPORT_BYTES + 1)
        document: Any = loads(content[:MAX_REPORT_BYTES])
    except OSError as error:
        raise UnusableError(f"{path} can't be read: {error.strerror}. [verdict_unreadable]") from error
    except (ValueError, RecursionError) as error:
        raise UnusableError(f"{path} is not JSON: {error}. [verdict_invalid]") from error
    if isinstance(document, dict) and isinstance(document.get("verdict"), dict):
        document = document["verdict"]
    try:
        return Verdict.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UnusableError(f"{path} is not a verdict: {place}: {first['msg']}. [verdict_invalid]") from error


def described(found: Verification, report: Report, *, verbose: bool = False) -> list[str]:
    """Say in lines what is wrong, what was not checked, and how many claims hold."""
    from wsb_engine.presentation.text import clean

    wrong = found.wrong if verbose else found.wrong[:SHOWN]
    lines = [f"{'WRONG':<12}{clean(_told(finding))}" for finding in wrong]
    if len(wrong) < len(found.wrong):
        lines.append(f"{'':<12}and {len(found.wrong) - len(wrong)} more: --verbose lists them")
    if verbose:
        lines += [f"{'holds':<12}{clean(_told(finding))}" for finding in found.held]
    for why, paths in _grouped(found.not_checked).items():
        shown = paths if verbose else paths[:SHOWN]
        more = "" if len(shown) == len(paths) else f" and {len(paths) - len(shown)} more"
        lines.append(f"{'not checked':<12}{clean(why.removeprefix('not checked '))}: {clean(', '.join(shown))}{more}")
    lines.append(f"{'verified':<12}{_summary(found, report)}")
    return lines


def _summary(found: Verification, report: Report) -> str:
    counts = f"{len(found.held)} claims hold, {len(found.wrong)} are wrong, {len(found.not_checked)} were not checked"
    if not found.repeated:
        return f"{counts}; give the model and the batch to repeat the analysis"
    if found.exact:
        return f"{counts}; the analysis was repeated to the last bit"
    engine = report.engine
    return (
        f"{counts}; the analysis was repeated, but not on the same machine and versions (wsb {engine.version}, torch "
        f"{engine.torch}, {engine.device}), so it had to agree up to rounding only"
    )


def _told(finding: Finding) -> str:
    if finding.claimed is None and finding.derived is None:
        return f"{finding.path} ({finding.how})"
    tolerance = "" if not finding.tolerance else f", ± {finding.tolerance:.2g}"
    return f"{finding.path}: {finding.claimed!r} claimed, {finding.derived!r} derived{tolerance} ({finding.how})"


def _grouped(findings: list[Finding]) -> dict[str, list[str]]:
    """Return paths by why they were not checked; entries of one list once."""
    groups: dict[str, dict[str, None]] = {}
    for finding in findings:
        groups.setdefault(finding.how, {})[re.sub(r"\.\d+(?=\.|$)", ".*", finding.path)] = None
    return {why: list(paths) for why, paths in groups.items()}
