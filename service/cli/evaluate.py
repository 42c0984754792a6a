"""One analysis for the command line: here in a sandbox, or on a server."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from pydantic import SecretStr, ValidationError

from service.analyses.error_codes import is_limit, is_service_failure
from service.child.entry import BATCH_FILE, ENTRY, MODEL_FILE, PRELOAD
from service.child.protections import required
from service.cli.progress import ProgressSink
from service.kit.devices import has_gpu
from service.sandbox import IS_SUPPORTED, Job, Outcome, SandboxError
from service.settings import Settings
from wsb_engine.options import Options
from wsb_engine.report import Report

if TYPE_CHECKING:
    import httpx

_SERVER_SECONDS = 60
_POLL_SECONDS = 0.5


class InvalidInputError(Exception):
    """The model, the batch or the options can't be analysed."""


class NotEvaluatedError(Exception):
    """The analysis could not be done: out of time or memory, a crash, an unreachable server."""


async def evaluate_here(
    model: Path, batch: Path, options: Options, *, settings: Settings, seconds: float, progress: ProgressSink
) -> Report:
    """Run the engine in a sandboxed child of this process.

    Args:
        model: Model file.
        batch: Batch file.
        options: Options of the engine.
        settings: Settings for threads, memory and sandbox.
        seconds: Wall-clock limit.
        progress: Called with the progress of the analysis.

    Raises:
        InvalidInputError, NotEvaluatedError: with a message for the user.
    """
    task = asyncio.current_task()
    if task is not None:
        # Leaving the zygote's context kills the child; a signal must not bypass that.
        with suppress(NotImplementedError):  # on Windows
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    with tempfile.TemporaryDirectory(prefix="wsb-") as name:
        folder = Path(name)
        shutil.copyfile(model, folder / MODEL_FILE)
        shutil.copyfile(batch, folder / BATCH_FILE)
        job = Job(
            folder=folder,
            entry=ENTRY,
            request={"options": options.model_dump(mode="json"), "torchscript": settings.torchscript},
            seconds=seconds,
            threads=settings.job_threads,
            limits=settings.job_limits,
            gpu=options.device != "cpu" and has_gpu(),
            required=required(settings),
        )
        try:
            outcome = await _run(job, progress)
        except SandboxError as error:
            raise _failure(error.code, error.message, error.advice, broke_down=True) from error
    if (found := outcome.error) is not None:
        raise _ended(outcome.status, found.code, found.message, found.advice)
    return _report(outcome.result or "")


async def _run(job: Job, progress: ProgressSink) -> Outcome:
    """Run a job in the sandbox on Linux, in an ordinary process elsewhere."""
    if not IS_SUPPORTED:
        from service.sandbox.unconfined import run_unconfined

        return await run_unconfined(job, progress)
    from service.sandbox import Zygote

    async with Zygote(PRELOAD) as zygote:
        return await zygote.run(job, progress)


def evaluate_there(
    url: str,
    model: Path,
    batch: Path,
    options: Options,
    *,
    seconds: float | None,
    progress: ProgressSink,
    key: SecretStr | None = None,
) -> Report:
    """Send both files to a server and follow the analysis until it ends; an interrupt cancels it there.

    Args:
        url: URL of the server.
        model: Model file.
        batch: Batch file.
        options: Options of the engine.
        seconds: Wall-clock limit that the server applies; None for the server's default.
        progress: Called with the progress of the analysis.
        key: API key, if the server requires one.

    Raises:
        InvalidInputError, NotEvaluatedError: with a message for the user.
    """
    import httpx

    request: dict[str, Any] = {"options": options.model_dump(mode="json")}
    if seconds is not None:
        request["timeout_s"] = seconds
    try:
        with httpx.Client(base_url=url, timeout=_SERVER_SECONDS, headers=_authorization(key)) as client:
            with model.open("rb") as model_file, batch.open("rb") as batch_file:
                files: dict[str, BinaryIO | bytes] = {
                    "model": model_file,
                    "batch": batch_file,
                    "request": json.dumps(request).encode(),
                }
                response = client.post("/v1/analyses", files=files)
            analysis = _accepted(response)
            try:
                return _follow(client, analysis["links"]["self"], progress)
            except KeyboardInterrupt:
                client.post(f"{analysis['links']['self']}/cancel")
                raise
    except httpx.HTTPError as error:
        raise NotEvaluatedError(f"{url} can't be reached: {error or type(error).__name__}") from error


def _authorization(key: SecretStr | None) -> dict[str, str]:
    if key is None:
        return {}
    # Checked here, because httpx would print the key in its error about an invalid header.
    text = key.get_secret_value().strip()
    if not (text.isascii() and text.isprintable()):
        raise InvalidInputError("WSB_API_KEY contains characters that no key has.")
    return {"Authorization": f"Bearer {text}"}


def _follow(client: httpx.Client, path: str, progress: ProgressSink) -> Report:
    while True:
        analysis = _accepted(client.get(path))
        if analysis["state"] == "succeeded":
            return _report(client.get(analysis["links"]["report"]).text)
        if analysis["finished_at"] is not None:
            state = analysis["state"]
            error = analysis["error"] or {"code": state, "message": "The analysis ended early.", "advice": ""}
            raise _ended(state, error["code"], error["message"], error["advice"])
        if analysis["progress"] is not None:
            progress(analysis["progress"])
        time.sleep(_POLL_SECONDS)


def _accepted(response: httpx.Response) -> dict[str, Any]:
    content: dict[str, Any] = {}
    with suppress(ValueError):
        content = response.json()
    if response.is_success:
        return content
    message = content.get("detail") or f"The server answered {response.status_code}."
    errors = "".join(f"\n{item['pointer']}: {item['detail']}" for item in content.get("errors", ()))
    code = content.get("code", f"http_{response.status_code}")
    raise _failure(code, message + errors, content.get("advice", ""), broke_down=response.status_code >= 500)


def _report(text: str) -> Report:
    try:
        return Report.model_validate_json(text)
    except ValidationError as error:
        raise NotEvaluatedError(f"The analysis did not produce a valid report: {error}") from error


def _ended(state: str, code: str, message: str, advice: str) -> InvalidInputError | NotEvaluatedError:
    """Return the error of an analysis that ended without a report."""
    broke_down = state != "failed" or is_service_failure(code) or is_limit(code)
    return _failure(code, message, advice, broke_down=broke_down)


def _failure(code: str, message: str, advice: str, *, broke_down: bool) -> InvalidInputError | NotEvaluatedError:
    text = f"{message} [{code}]" + (f"\n{advice}" if advice else "")
    return NotEvaluatedError(text) if broke_down else InvalidInputError(text)
