"""One analysis for the command line, on this machine in a sandbox."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from service.analyses.error_codes import is_limit, is_service_failure
from service.child.entry import DATA_FILES_ENTRY, ENTRY, ESTIMATE_ENTRY, PRELOAD_ONCE, VERIFY_ENTRY
from service.child.protections import required
from service.cli.progress import ProgressSink
from service.client.files import may_have_data_files
from service.kit.devices import has_gpu
from service.sandbox import IS_SUPPORTED, Job, Outcome, SandboxError
from service.settings import Settings
from wsb_engine.costs import Estimate
from wsb_engine.formats.foreign import folder_batch, folder_model
from wsb_engine.options import Options
from wsb_engine.report import Report
from wsb_engine.verification.findings import Verification


class InvalidInputError(Exception):
    """The model, the batch or the options can't be analysed."""


class NotEvaluatedError(Exception):
    """The analysis could not be done: out of time or memory, a crash, an unreachable server."""


async def evaluate_here(
    model: Path,
    batch: Path,
    options: Options,
    *,
    settings: Settings,
    seconds: float,
    progress: ProgressSink,
    terms: Mapping[str, Any] | None = None,
    optimizer_state: Path | None = None,
) -> Report:
    """Analyse in a sandboxed child of this process.

    Args:
        model: Model file.
        batch: Batch file.
        options: Options of the engine.
        settings: Settings for threads, memory and sandbox.
        seconds: Wall-clock limit.
        progress: Called with the progress of the analysis.
        terms: What the analysis has to know of a policy, from ``service.policies.terms``.
        optimizer_state: File with the second moments of an optimizer.

    Raises:
        InvalidInputError, NotEvaluatedError: with a message for the user.
    """
    found = await _run_here(
        *(ENTRY, model, batch, options, settings, seconds, progress, terms or {}), optimizer_state=optimizer_state
    )
    return read_report(found)


async def estimate_here(
    model: Path, batch: Path, options: Options, *, settings: Settings, seconds: float, progress: ProgressSink
) -> Estimate:
    """Estimate an analysis in a sandboxed child of this process; as ``evaluate_here``."""
    found = await _run_here(ESTIMATE_ENTRY, model, batch, options, settings, seconds, progress, {})
    try:
        return Estimate.model_validate_json(found)
    except ValidationError as error:
        raise NotEvaluatedError(f"The engine did not produce a valid estimate: {error}") from error


async def verify_here(
    model: Path,
    batch: Path,
    report: Report,
    *,
    settings: Settings,
    seconds: float,
    progress: ProgressSink,
    optimizer_state: Path | None = None,
) -> Verification:
    """Verify a report in a sandboxed child of this process; as ``evaluate_here``."""
    options = Options(device=report.engine.device if report.engine.device != "cpu" and has_gpu() else "cpu")
    terms = {"report": report.model_dump_json()}
    found = await _run_here(
        *(VERIFY_ENTRY, model, batch, options, settings, seconds, progress, terms), optimizer_state=optimizer_state
    )
    try:
        return Verification.model_validate_json(found)
    except ValidationError as error:
        raise NotEvaluatedError(f"The engine did not produce valid findings: {error}") from error


async def _run_here(
    entry: str,
    model: Path,
    batch: Path,
    options: Options,
    settings: Settings,
    seconds: float,
    progress: ProgressSink,
    terms: Mapping[str, Any],
    optimizer_state: Path | None = None,
) -> str:
    """Run an entry function of the child on the files; return its result."""
    task = asyncio.current_task()
    if task is not None:
        # Leaving the zygote's context kills the child; a signal must not bypass that.
        with suppress(NotImplementedError):  # on Windows
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    with tempfile.TemporaryDirectory(prefix="wsb-") as folder:

        def job(function: str, *data: Path) -> Job:
            return Job(
                folder=Path(folder),
                entry=function,
                request={
                    "options": options.model_dump(mode="json"),
                    "torchscript": settings.torchscript,
                    "max_model_bytes": settings.whole_model_bytes,
                    "model": os.path.abspath(model),
                    "batch": os.path.abspath(batch),
                    "optimizer_state": None if optimizer_state is None else os.path.abspath(optimizer_state),
                    **terms,
                },
                seconds=seconds,
                threads=settings.job_threads,
                limits=settings.job_limits,
                gpu=has_gpu() and (options.device != "cpu" or options.devices is not None),
                # Not copied, since they may be large; the child can only read them.
                readable=(model, batch, *([] if optimizer_state is None else [optimizer_state]), *data),
                required=required(settings),
            )

        try:
            progress({"phase": "start"})
            async with _sandbox() as run:
                progress({"phase": "load"})
                data: list[Path] = []
                if may_have_data_files(model):
                    data = within(model.parent, _result(await run(job(DATA_FILES_ENTRY), progress)))
                return _result(await run(job(entry, *data), progress))
        except SandboxError as error:
            raise failure(error.code, error.message, error.advice, broke_down=True) from error


def require_files(model: Path, batch: Path, *others: Path) -> None:
    """Raise InvalidInputError if a path does not lead to a regular file, whose size and content stay as they are."""
    for path, folder in ((model, folder_model), (batch, folder_batch)):
        if path.is_dir():
            error = folder(path)
            raise failure(error.code, error.message, error.advice, broke_down=False)
        _require_file(path)
    for path in others:
        _require_file(path)


def _require_file(path: Path) -> None:
    if not path.is_file():
        advice = "Save its content as a file and give the path of that."
        raise failure("not_a_file", f"{path} is not a regular file.", advice, broke_down=False)


def _result(outcome: Outcome) -> str:
    if (found := outcome.error) is not None:
        advice = found.advice
        if found.code == "internal_error":
            # The operator of this sandbox is the user.
            told = "\n".join(line if line.isprintable() else repr(line) for line in outcome.log.splitlines())
            advice = f"Report this, which the analysis wrote before it ended:\n{told}"
        raise ended(outcome.status, found.code, found.message, advice)
    return outcome.result or ""


def within(folder: Path, listed: str) -> list[Path]:
    """Return the paths of the files in a folder that are neither links nor reached through one.

    Args:
        folder: The folder.
        listed: Names of files as a JSON list, from a child in which a hostile model may have taken over.

    Raises:
        NotEvaluatedError: if it is not such a list.
    """
    whole = folder.resolve()
    try:
        names = TypeAdapter(list[str]).validate_json(listed)
    except ValidationError as error:
        raise NotEvaluatedError(f"The data files of the model are not known: {error}") from error
    return [path for name in names if (path := whole / name).resolve() == path and path.is_relative_to(whole)]


@asynccontextmanager
async def _sandbox() -> AsyncIterator[Callable[[Job, ProgressSink], Awaitable[Outcome]]]:
    """Yield what runs jobs: the sandbox on Linux, ordinary processes elsewhere."""
    if not IS_SUPPORTED:
        from service.sandbox.unconfined import run_unconfined

        yield run_unconfined
        return
    from service.sandbox import Zygote

    async with Zygote(PRELOAD_ONCE) as zygote:
        yield zygote.run


def read_report(text: str) -> Report:
    """Parse a report.

    Raises:
        NotEvaluatedError: if it is not one.
    """
    try:
        return Report.model_validate_json(text)
    except ValidationError as error:
        raise NotEvaluatedError(f"The analysis did not produce a valid report: {error}") from error


def ended(state: str, code: str, message: str, advice: str) -> InvalidInputError | NotEvaluatedError:
    """Return the error of an analysis that ended without a report."""
    broke_down = state != "failed" or is_service_failure(code) or is_limit(code)
    return failure(code, message, advice, broke_down=broke_down)


def failure(code: str, message: str, advice: str, *, broke_down: bool) -> InvalidInputError | NotEvaluatedError:
    """Return the error with its code and advice.

    Args:
        code: Code of the error.
        message: What was found.
        advice: What to do; may be empty.
        broke_down: True if the input is not to blame.
    """
    text = f"{message} [{code}]" + (f"\n{advice}" if advice else "")
    return NotEvaluatedError(text) if broke_down else InvalidInputError(text)
