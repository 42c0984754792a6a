"""Run what a command asks for, here or on a server, and end the command if that fails."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from service.cli import ci
from service.cli.ending import Exit, end
from service.cli.evaluate import InvalidInputError, NotEvaluatedError, estimate_here, evaluate_here, require_files
from service.cli.progress import shown_progress
from service.cli.remote import evaluate_there
from service.kit.file_names import shown_file_name
from service.policies import Policy, terms
from service.settings import Settings
from wsb_engine.costs import Estimate
from wsb_engine.options import Options
from wsb_engine.report import Report


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
) -> Report:
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
    """
    asked = terms(policy, baseline, options)
    with _ending_on_errors():
        require_files(model, batch)
        with shown_progress() as progress:
            if url is not None:
                parts = {"policy": policy, "baseline": baseline} if asked else {}
                return evaluate_there(
                    *(url, model, batch, options),
                    seconds=timeout,
                    progress=progress,
                    key=settings.api_key,
                    more={
                        **told,
                        "model_name": shown_file_name(model.name),
                        "batch_name": shown_file_name(batch.name),
                        **{name: part.model_dump(mode="json") for name, part in parts.items() if part is not None},
                    },
                )
            here = evaluate_here(
                *(model, batch, options),
                settings=settings,
                seconds=timeout or settings.job_seconds,
                progress=progress,
                terms=asked,
            )
            return asyncio.run(here)


def about(name: str | None, labels: Sequence[str], url: str | None) -> dict[str, Any]:
    """Return what a server is told of an analysis besides its inputs; end the command if there is no server.

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
