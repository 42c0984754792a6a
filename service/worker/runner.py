"""One attempt at one analysis: job folder, sandboxed child, and storing its outcome."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import structlog
from procrastinate import JobContext
from pydantic import ValidationError
from pydantic_core import from_json
from sqlalchemy.exc import DataError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from service import traces
from service.analyses import outcomes, repository
from service.analyses.schemas import PROGRESS_FIELDS, AnalysisError, progress_document
from service.analyses.table import FINAL_STATES, AnalysisRow
from service.analyses.verdicts import stored_terms
from service.blobs.repository import stored_files
from service.blobs.table import StoredFile
from service.child.entry import STATE_FILE
from service.database import counters
from service.database.counters import Event
from service.database.engine import Database, patiently
from service.fields import field_errors
from service.internals.queue import AbortReason
from service.kit.background import background
from service.kit.devices import engine_names
from service.sandbox import Child, Outcome, SandboxError
from service.settings import Settings
from service.storage.store import (
    BlobCorruptError,
    BlobMissingError,
    BlobStore,
    InsufficientStorageError,
    StorageUnavailableError,
    full_disk_as_problem,
)
from service.traces import Tracing
from service.worker.children import Children
from service.worker.device import Device, options_here
from service.worker.elsewhere import leave_to_others, unavailable
from service.worker.files import copy_files
from service.worker.memory import MemoryBudget, shortage
from wsb_engine.report import Report

log = structlog.get_logger(__name__)

_CHILD_LINES = 100
"""Last lines of a child's output that are logged; with more, a hostile child could flood the log."""

DEVICE_FAILED = "device_failed"
"""Code of the engine's error."""


@dataclass(frozen=True, kw_only=True)
class _Attempt:
    """One attempt at an analysis."""

    row: AnalysisRow
    model_files: Sequence[StoredFile]
    terms: dict[str, Any]
    """What the child has to know of the policy."""
    progress: dict[str, Any] = field(default_factory=dict)
    """Latest progress of the child, as it says."""


@dataclass(frozen=True, kw_only=True)
class Runner:
    """Runs analyses on one device."""

    settings: Settings
    database: Database
    blobs: BlobStore
    children: Children
    name: str
    """Name of the device: cpu or cuda:N."""
    device: Device
    tracing: Tracing
    try_device: Callable[[], Awaitable[str | None]]
    """Returns why the device does not work; None if it does."""
    failed_here: set[UUID] = field(default_factory=set)
    """Analyses during which the device failed, and which another worker is to try."""
    running: set[int] = field(default_factory=set)
    """Numbers of the jobs in progress."""

    async def run(self, analysis: UUID, job: JobContext, traceparent: str | None = None) -> None:
        """Make one attempt. After an exception the queue tries again later.

        Args:
            analysis: Identifier of the analysis.
            job: Context of the queue's job.
            traceparent: Trace of the request for the analysis, if it was traced.

        Raises:
            asyncio.CancelledError: if the worker stops; the analysis is then back in the queue.
            LeftToOthersError: if it can't fit here but can in another worker; nothing has changed.
            StorageUnavailableError, InsufficientStorageError: if its files are unavailable at the moment, or the disk
                has no room for copies of them; it is then back in the queue.
            SandboxError: if no child could be started, it was killed from outside, or its device failed, and attempts
                are left.
        """
        number = job.job.id or 0
        self.running.add(number)
        try:
            facts: dict[str, str | int] = {"analysis": str(analysis), "job": number, "device": self.name}
            with (
                structlog.contextvars.bound_contextvars(**facts),
                self.tracing.job_span("run_analysis", traceparent, facts),
            ):
                await self._run(analysis, job)
        finally:
            structlog.contextvars.unbind_contextvars("tenant", "attempt")
            self.device.leave(number)
            self.running.discard(number)

    async def _run(self, analysis: UUID, job: JobContext) -> None:
        attempt = await self._start(analysis)
        if attempt is None:
            return
        row = attempt.row
        facts: dict[str, str | int] = {"tenant": row.tenant, "attempt": row.attempts}
        structlog.contextvars.bind_contextvars(**facts)
        traces.note(**facts)
        log.info("analysis_started")
        try:
            outcome = await self._attempt(attempt, job.job.id or 0)
        except asyncio.CancelledError:
            await self._stopped(attempt, job)
            return
        except BlobMissingError as error:
            message, advice = f"{error} is no longer stored.", "Upload it again."
            await self._fail(row, AnalysisError(code="blob_missing", message=message, advice=advice))
        except BlobCorruptError as error:
            message, advice = f"{error} is corrupt.", "Upload it again, and inform the operator."
            await self._fail(row, AnalysisError(code="blob_corrupt", message=message, advice=advice))
        except (StorageUnavailableError, InsufficientStorageError) as error:
            # Does not count as an attempt, however long it lasts.
            log.warning("analysis_not_started", code=error.code, cause=str(error.__cause__ or error))
            await self._put_back(row)
            raise
        except SandboxError as error:
            if row.attempts < self.settings.max_attempts:
                raise
            await self._fail(row, AnalysisError(code=error.code, message=error.message, advice=error.advice))
        else:
            lost = outcome.error
            if lost is not None and self.device.problem is not None:
                # As little the analysis's fault as a worker that stops.
                await self._put_back(row)
                raise SandboxError(lost.message, code=lost.code, advice=lost.advice)
            failed = self._device_failed(outcome)
            if lost is not None and (outcome.interrupted or failed) and row.attempts < self.settings.max_attempts:
                if failed:
                    self.failed_here.add(row.id)
                raise SandboxError(lost.message, code=lost.code, advice=lost.advice)
            await self._conclude(attempt, outcome)

    def _device_failed(self, outcome: Outcome) -> bool:
        return self.name != "cpu" and outcome.error is not None and outcome.error.code == DEVICE_FAILED

    async def _start(self, analysis: UUID) -> _Attempt | None:
        """Begin an attempt; None if the analysis is not to be run."""
        async with self.database.transaction() as session:
            if not await self._fits(session, analysis):
                return None
            row = await repository.start(session, analysis)
            if row is None:
                # It ended meanwhile, or its worker was lost while it was being cancelled.
                await repository.cancelled(session, analysis, allowed=("cancelling",))
            elif row.attempts > self.settings.max_attempts:
                await outcomes.fail(session, analysis, worker_lost(row.attempts - 1))
                return None
            if row is None:
                return None
            files = await stored_files(session, row.tenant, "models", row.model)
            return _Attempt(row=row, model_files=files, terms=await stored_terms(session, row))

    async def _fits(self, session: AsyncSession, analysis: UUID) -> bool:
        """Whether the analysis may run in this worker; ends one that can run in none."""
        row = await repository.find_anyones(session, analysis)
        if row is None or row.state in FINAL_STATES:
            return True
        within = self.settings.stalled_seconds
        if analysis in self.failed_here:
            await leave_to_others(session, row, self.name, within_seconds=within)
        here = MemoryBudget(memory_bytes=self.settings.job_bytes, within_seconds=within)
        error = await unavailable(session, row, self.name, within_seconds=within) or await shortage(session, row, here)
        if error is None:
            return True
        log.warning("analysis_not_for_workers", analysis=str(analysis), code=error.code, message=error.message)
        if await outcomes.fail(session, analysis, error.model_dump(mode="json")) is None:
            await repository.cancelled(session, analysis, allowed=("cancelling",))
        return False

    async def _attempt(self, attempt: _Attempt, job: int) -> Outcome:
        row, model_files = attempt.row, attempt.model_files
        async with self._provided(row, model_files) as child:
            request = {
                "options": options_here(self.name, row.options),
                "torchscript": self.settings.torchscript,
                "max_model_bytes": self.settings.whole_model_bytes,
                "model_data": [file["name"] for file in model_files[1:]],
                "optimizer_state": None if row.optimizer_state is None else STATE_FILE,
                "gpus": [] if self.name == "cpu" else engine_names(self.name),
                **attempt.terms,
            }

            def progressed(fields: dict[str, Any]) -> None:
                attempt.progress.update((name, fields[name]) for name in PROGRESS_FIELDS & fields.keys())
                if fields.get("one_thread") is True:
                    self.device.share(job)

            async with self._writing_progress(row.id, attempt.progress):
                self.children.fork_ahead()
                outcome = await child.run(request, row.timeout_s, progressed)
        if self._device_failed(outcome):
            await self._examine_device(row)
        self.device.leave(job)  # so that the next job can compute while the report is stored
        return outcome

    async def _examine_device(self, row: AnalysisRow) -> None:
        """Count a failure of the device, and stop taking analyses if it does not work any more."""

        async def count(session: AsyncSession) -> None:
            await counters.add(session, [Event("device_failed", self.name)])

        log.error("device_failed", analysis=str(row.id))
        await self._store(count)
        problem = await self.try_device()
        if problem is not None:
            log.error("device_lost", problem=problem)
            self.device.fail(problem)

    @asynccontextmanager
    async def _provided(self, row: AnalysisRow, model_files: Sequence[StoredFile]) -> AsyncIterator[Child]:
        """Yield a child whose folder holds the files of an analysis.

        Raises:
            InsufficientStorageError: if the disk of the job folder is full.
            SandboxError: if no child can be forked.
            BlobMissingError, BlobCorruptError, StorageUnavailableError: as ``copy_files``.
        """
        async with AsyncExitStack() as stack:
            with full_disk_as_problem():
                child = await stack.enter_async_context(self.children.one())
                await copy_files(self.blobs, row, model_files, child.place.folder)
            yield child

    @asynccontextmanager
    async def _writing_progress(self, analysis: UUID, latest: dict[str, Any]) -> AsyncIterator[None]:
        async def write() -> None:
            written: dict[str, Any] | None = None
            while True:
                await asyncio.sleep(self.settings.progress_seconds)
                progress = progress_document(latest)
                if progress is None or progress == written:
                    continue
                try:
                    async with self.database.transaction() as session:
                        await repository.report_progress(session, analysis, progress)
                except (SQLAlchemyError, OSError) as error:
                    log.warning("progress_not_written", error=str(error))
                    continue
                written = progress

        async with background(write(), "progress"):
            yield

    async def _stopped(self, attempt: _Attempt, job: JobContext) -> None:
        """Handle the end of the child after the analysis was cancelled or this worker began to stop."""
        task = asyncio.current_task()
        if job.abort_reason() is AbortReason.USER_REQUEST:
            if task is not None:
                task.uncancel()
            async with self.database.transaction() as session:
                await _keep_progress(session, attempt)
                await repository.cancelled(session, attempt.row.id)
            log.info("analysis_cancelled")
            return
        await self._put_back(attempt.row)
        raise asyncio.CancelledError

    async def _put_back(self, row: AnalysisRow) -> None:
        async def put_back(session: AsyncSession) -> None:
            await repository.requeue(session, row.id, row.attempts)
            await repository.cancelled(session, row.id, allowed=("cancelling",))

        await self._store(put_back)
        log.info("analysis_requeued")

    async def _conclude(self, attempt: _Attempt, outcome: Outcome) -> None:
        row, given = attempt.row, outcome.error
        details = {} if given is None else {"code": given.code}
        log.info("analysis_ended", status=outcome.status, seconds=round(outcome.seconds, 3), **details)
        if given is not None:
            for line in outcome.log.splitlines()[-_CHILD_LINES:]:
                log.info("child_log", line=line)
            error = AnalysisError(code=given.code, message=given.message, advice=given.advice, details=given.details)
            await self._fail(row, error, timed_out=outcome.status == "timed_out", attempt=attempt)
            return
        try:
            report, timings = await asyncio.to_thread(_checked, outcome)
            traces.add_phases(timings)

            async def succeed(session: AsyncSession) -> None:
                if await outcomes.succeed(session, row.id, report, timings) is None:
                    await repository.cancelled(session, row.id, allowed=("cancelling",))

            await self._store(succeed)
        except (ValueError, DataError) as invalid:  # a hostile child's, or what no column holds
            log.error("invalid_report", errors=_told(invalid)[:2000])
            message = "The analysis did not produce a valid report."
            await self._fail(row, AnalysisError(code="invalid_report", message=message))

    async def _fail(
        self, row: AnalysisRow, error: AnalysisError, *, timed_out: bool = False, attempt: _Attempt | None = None
    ) -> None:
        document = error.model_dump(mode="json")

        async def fail(session: AsyncSession) -> None:
            if attempt is not None:
                await _keep_progress(session, attempt)
            if await outcomes.fail(session, row.id, document, timed_out=timed_out) is None:
                await repository.cancelled(session, row.id, allowed=("cancelling",))

        traces.mark_failed(error.code)
        await self._store(fail)

    async def _store(self, end: Callable[[AsyncSession], Awaitable[None]]) -> None:
        """Store how the analysis or the attempt ended, as soon as the database is available."""

        async def once() -> None:
            async with self.database.transaction() as session:
                await end(session)

        await patiently(once, seconds=self.settings.database_patience_seconds)


async def _keep_progress(session: AsyncSession, attempt: _Attempt) -> None:
    """Write the last progress, so that what was certified stays known although there is no report."""
    progress = progress_document(attempt.progress)
    if progress is not None:
        await repository.report_progress(session, attempt.row.id, progress, allowed=("running", "cancelling"))


def worker_lost(attempts: int) -> dict[str, Any]:
    """Return the error of an analysis whose worker was lost in every attempt."""
    return AnalysisError(
        code="worker_lost",
        message=f"The worker was lost in each of {attempts} attempts.",
        advice="The analysis may need more memory than the machine has; the log has the cause.",
    ).model_dump(mode="json")


def _told(invalid: Exception) -> str:
    """Describe an invalid report, without what it contains."""
    if isinstance(invalid, ValidationError):
        return "; ".join(f"{error.pointer}: {error.detail}" for error in field_errors(invalid))
    return str(invalid)


def _checked(outcome: Outcome) -> tuple[str, dict[str, float]]:
    """Validate a child's report; return it as this process serialises it, and its known timings.

    No timing exceeds the time that the child had, as this process measured it.
    """
    # Not model_validate_json, whose errors copy what they are about: a gigabyte for each, if a hostile child wants so.
    report = Report.model_validate(from_json(outcome.result or ""))
    known = [name for name in outcomes.TIMINGS if name in report.timings]
    return report.model_dump_json(), {name: min(report.timings[name], outcome.seconds) for name in known}
