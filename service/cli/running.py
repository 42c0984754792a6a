"""Run what a command asks for, here or on a server, and end the command if that fails."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.cli import ci
from service.cli.ending import Exit, end
from service.cli.evaluate import (
    InvalidInputError,
    NotEvaluatedError,
    estimate_here,
    evaluate_here,
    require_files,
    verify_here,
)
from service.cli.progress import shown_progress
from service.cli.remote import connected, evaluate_there
from service.client.errors import ClientError
from service.policies import Policy, terms
from service.settings import Settings
from wsb_engine.costs import Estimate
from wsb_engine.options import Options
from wsb_engine.report import Report
from wsb_engine.verification.findings import Verification


@dataclass(frozen=True)
class Evaluated:
    """A report, and the identifier of its analysis if a server has it."""

    report: Report
    analysis: str | None = None


def evaluated(
    model: Path,
    batch: Path,
    options: Options,
    *,
    settings: Settings,
    url: str | None,
    timeout: float | None,
    told: Mapping[str, Any],
    policy: Policy | None = None,
    baseline: Report | None = None,
    optimizer_state: Path | None = None,
) -> Evaluated:
    """Analyse here, or on a server if there is a URL; end the command if there is no report.

    Args:
        model: Model file.
        batch: Batch file.
        options: Options of the engine.
        settings: Settings for threads, memory, sandbox and the API key.
        url: URL of the server; None to analyse here.
        timeout: Wall-clock limit in seconds; None for the default.
        told: Further fields of the request to a server, from ``about``.
        policy: Rules that the report will be judged by.
        baseline: Report that they compare with.
        optimizer_state: File with the second moments of an optimizer.
    """
    asked = terms(policy, baseline, options)
    with _ending_on_errors():
        require_files(model, batch, *([] if optimizer_state is None else [optimizer_state]))
        with shown_progress() as progress:
            if url is not None:
                patience = timeout or settings.job_seconds
                with connected(url, settings.api_key, busy_seconds=patience) as client:
                    analysis, report = evaluate_there(
                        *(client, model, batch, options),
                        seconds=timeout,
                        progress=progress,
                        policy=policy if asked else None,
                        baseline=baseline if asked else None,
                        told=told,
                        optimizer_state=optimizer_state,
                    )
                    return Evaluated(report, str(analysis.id))
            here = evaluate_here(
                *(model, batch, options),
                settings=settings,
                seconds=timeout or settings.job_seconds,
                progress=progress,
                terms=asked,
                optimizer_state=optimizer_state,
            )
            return Evaluated(asyncio.run(here))


def named_baseline(name: str, url: str, *, settings: Settings) -> Report | None:
    """Fetch a server's baseline of this name; None if there is none yet. End the command if that fails."""
    with _ending_on_errors(), connected(url, settings.api_key, busy_seconds=settings.job_seconds) as client:
        try:
            return client.report(client.baseline(name).analysis)
        except ClientError as error:
            if error.code != "baseline_not_found":
                raise
            return None


def promote(name: str, analysis: str, url: str, *, settings: Settings) -> str:
    """Make an analysis a server's baseline; return what has happened. End the command if that fails."""
    with _ending_on_errors(), connected(url, settings.api_key, busy_seconds=settings.job_seconds) as client:
        try:
            made = client.promote(name, analysis)
        except ClientError as error:
            if error.code != "baseline_newer":
                raise
            return f"Not promoted: {error.detail} [{error.code}]"
        instead = "" if made.replaced is None else f" in place of {made.replaced}"
        return f"Baseline {name} is now {analysis}{instead}."


def about(name: str | None, labels: Sequence[str], url: str | None) -> dict[str, Any]:
    """Return what to send to a server about an analysis besides its inputs; end the command if there is no server.

    Args:
        name: Name of the analysis.
        labels: ``name:value`` each; they replace those that a CI system sets.
        url: URL of the server.
    """
    if url is None:
        if name is not None or labels:
            end("--name and --label are for an analysis on a server: add --url, or leave them out.", Exit.INVALID)
        return {}
    pairs = [label.partition(":") for label in labels]
    return {"name": name, "labels": {**ci.labels(os.environ), **{key: value for key, _, value in pairs}}}


def estimated(model: Path, batch: Path, options: Options, *, settings: Settings, timeout: float | None) -> Estimate:
    """Estimate here; end the command if that fails."""
    with _ending_on_errors():
        require_files(model, batch)
        here = estimate_here(
            *(model, batch, options),
            settings=settings,
            seconds=timeout or settings.job_seconds,
            progress=lambda _: None,
        )
        return asyncio.run(here)


def verified(
    model: Path,
    batch: Path,
    report: Report,
    *,
    settings: Settings,
    timeout: float | None,
    optimizer_state: Path | None = None,
) -> Verification:
    """Verify a report against its model and batch here; end the command if that fails."""
    with _ending_on_errors():
        require_files(model, batch, *([] if optimizer_state is None else [optimizer_state]))
        with shown_progress() as progress:
            here = verify_here(
                *(model, batch, report),
                settings=settings,
                seconds=timeout or settings.job_seconds,
                progress=progress,
                optimizer_state=optimizer_state,
            )
            return asyncio.run(here)


@contextmanager
def _ending_on_errors() -> Iterator[None]:
    """End the command if what runs inside fails or is interrupted."""
    try:
        yield
    except InvalidInputError as error:
        end(str(error), Exit.INVALID)
    except NotEvaluatedError as error:
        end(str(error), Exit.NOT_EVALUATED)
    except (KeyboardInterrupt, asyncio.CancelledError):
        end("Interrupted.", Exit.INTERRUPTED)
