"""One attempt at one analysis: job folder, sandboxed child, and what becomes of its outcome."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import structlog
from procrastinate.job_context import AbortReason, JobContext
from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError

from service.analyses import repository
from service.analyses.job import BATCH_FILE, MODEL_FILE
from service.analyses.schemas import AnalysisError, progress_document
from service.analyses.table import AnalysisRow
from service.database import Database
from service.protections import required
from service.sandbox import Job, Outcome, SandboxError, Zygote
from service.settings import Settings
from service.storage import BlobMissingError, BlobStore
from wsb_engine.report import Report

log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Runner:
    """Runs analyses on one device."""

    settings: Settings
    database: Database
    blobs: BlobStore
    zygote: Zygote
    entry: str
    """What a child runs, as module:function."""
    device: str
    folder: Path
    """Where job folders are made."""
    running: set[int] = field(default_factory=set)
    """Jobs of the queue that are being worked on."""

    async def run(self, analysis: UUID, job: JobContext) -> None:
        """One attempt. An exception that leaves it makes the queue try again later.

        Raises:
            asyncio.CancelledError: when the worker stops; the analysis is back in the queue then.
            SandboxError: when no child could be started, and there are attempts left.
        """
        number = job.job.id or 0
        self.running.add(number)
        try:
            with structlog.contextvars.bound_contextvars(analysis=str(analysis)):
                await self._run(analysis, job)
        finally:
            self.running.discard(number)

    async def _run(self, analysis: UUID, job: JobContext) -> None:
        row = await self._start(analysis)
        if row is None:
            return
        log.info("analysis_started", attempt=row.attempts)
        try:
            outcome = await self._attempt(row)
        except asyncio.CancelledError:
            await self._stopped(row, job)
            return
        except BlobMissingError as error:
            message = f"The file {error} is not stored any more."
            await self._fail(row, AnalysisError(code="blob_missing", message=message))
        except SandboxError as error:
            if row.attempts < self.settings.max_attempts:
                raise
            await self._fail(row, AnalysisError(code=error.code, message=error.message, advice=error.advice))
        else:
            await self._conclude(row, outcome)

    async def _start(self, analysis: UUID) -> AnalysisRow | None:
        async with self.database.transaction() as session:
            row = await repository.start(session, analysis)
            if row is None:
                # It ended meanwhile, or its worker was lost while it was being cancelled.
                await repository.cancelled(session, analysis, allowed=("cancelling",))
            elif row.attempts > self.settings.max_attempts:
                await repository.fail(session, analysis, worker_lost(row.attempts - 1))
                return None
            return row

    async def _attempt(self, row: AnalysisRow) -> Outcome:
        folder = Path(tempfile.mkdtemp(prefix="job-", dir=self.folder))
        try:
            await asyncio.gather(
                self.blobs.copy("models", row.model, folder / MODEL_FILE),
                self.blobs.copy("batches", row.batch, folder / BATCH_FILE),
            )
            job = Job(
                folder=folder,
                entry=self.entry,
                request={
                    "options": {**row.options, "device": self.device},
                    "torchscript": self.settings.torchscript,
                },
                seconds=row.timeout_s,
                threads=self.settings.job_threads,
                limits=self.settings.job_limits,
                gpu=self.device != "cpu",
                required=required(self.settings),
            )
            latest: dict[str, Any] = {}
            async with self._writing_progress(row.id, latest):
                return await self.zygote.run(job, latest.update)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @asynccontextmanager
    async def _writing_progress(self, analysis: UUID, latest: dict[str, Any]) -> AsyncIterator[None]:
        async def write() -> None:
            written: dict[str, Any] = {}
            while True:
                await asyncio.sleep(self.settings.progress_seconds)
                try:
                    progress = progress_document(latest)
                except ValidationError:
                    continue  # nothing yet, or a child that says something else than the engine does
                if progress == written:
                    continue
                try:
                    async with self.database.transaction() as session:
                        await repository.report_progress(session, analysis, progress)
                except (SQLAlchemyError, OSError) as error:
                    log.warning("progress_not_written", error=str(error))
                    continue
                written = progress

        task = asyncio.create_task(write(), name="progress")
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _stopped(self, row: AnalysisRow, job: JobContext) -> None:
        """The child is gone: because somebody cancelled the analysis, or because this worker stops."""
        task = asyncio.current_task()
        if job.abort_reason() is AbortReason.USER_REQUEST:
            if task is not None:
                task.uncancel()
            async with self.database.transaction() as session:
                await repository.cancelled(session, row.id)
            log.info("analysis_cancelled")
            return
        async with self.database.transaction() as session:
            await repository.requeue(session, row.id, row.attempts)
            await repository.cancelled(session, row.id, allowed=("cancelling",))
        log.info("analysis_requeued")
        raise asyncio.CancelledError

    async def _conclude(self, row: AnalysisRow, outcome: Outcome) -> None:
        given = outcome.error
        details = {} if given is None else {"code": given.code, "child_log": outcome.log}
        log.info("analysis_ended", status=outcome.status, seconds=round(outcome.seconds, 3), **details)
        if given is not None:
            error = AnalysisError(code=given.code, message=given.message, advice=given.advice, details=given.details)
            await self._fail(row, error, timed_out=outcome.status == "timed_out")
            return
        try:
            report = await asyncio.to_thread(_checked, outcome.result or "")
        except ValidationError as invalid:
            log.error("invalid_report", errors=str(invalid)[:2000])
            message = "The analysis gave something that is no report."
            await self._fail(row, AnalysisError(code="invalid_report", message=message))
            return
        async with self.database.transaction() as session:
            if await repository.succeed(session, row.id, report) is None:
                await repository.cancelled(session, row.id, allowed=("cancelling",))

    async def _fail(self, row: AnalysisRow, error: AnalysisError, *, timed_out: bool = False) -> None:
        async with self.database.transaction() as session:
            document = error.model_dump(mode="json")
            if await repository.fail(session, row.id, document, timed_out=timed_out) is None:
                await repository.cancelled(session, row.id, allowed=("cancelling",))


def worker_lost(attempts: int) -> dict[str, Any]:
    """The error of an analysis whose workers all died."""
    return AnalysisError(
        code="worker_lost",
        message=f"The worker was lost in each of {attempts} attempts.",
        advice="The analysis may need more memory than the machine has; the operator finds the cause in the log.",
    ).model_dump(mode="json")


def _checked(result: str) -> str:
    """The report as our schema writes it: the child's word for it is not taken."""
    return Report.model_validate_json(result).model_dump_json()
