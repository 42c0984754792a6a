"""The worker: owns one device, takes one analysis at a time, and looks after those of lost workers."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from uuid import UUID

import procrastinate
import structlog
from procrastinate.exceptions import ConnectorException
from procrastinate.job_context import JobContext
from procrastinate.jobs import Status
from procrastinate.worker import Worker
from sqlalchemy.exc import SQLAlchemyError

from service import workers
from service.analyses import repository
from service.analyses.job import ENTRY
from service.analyses.runner import Runner, worker_lost
from service.analyses.table import FINAL_STATES
from service.database import Database
from service.protections import active_protections
from service.queue import RUN_ANALYSIS, open_queue, queues_of
from service.sandbox import Zygote
from service.scratch import ScratchFolder
from service.settings import Settings
from service.storage import BlobStore

log = structlog.get_logger(__name__)


async def work(
    settings: Settings, database_url: str, *, device: str, stop: asyncio.Event, zygote: Zygote, entry: str = ENTRY
) -> None:
    """Runs analyses until ``stop`` is set; the running one then has ``shutdown_seconds`` to finish.

    Args:
        settings: Limits and folders.
        database_url: Of a database with current tables.
        device: cpu or cuda:N; analyses that ask for another are left to others.
        stop: Ends the work.
        zygote: Not started yet; has the modules of ``entry`` preloaded.
        entry: What a child runs.

    Raises:
        SandboxError: when no child can be run on this host, or is confined less than the settings require.
    """
    database = Database(database_url)
    queue = open_queue(database_url)
    with ScratchFolder(settings.job_dir) as scratch:
        try:
            await database.migrate()
            async with zygote, queue.open_async():
                runner = Runner(
                    settings=settings,
                    database=database,
                    blobs=BlobStore(settings.blob_dir),
                    zygote=zygote,
                    entry=entry,
                    device=device,
                    folder=scratch.path,
                )
                _add_task(queue, runner)
                worker = _queue_worker(settings, queue, device)
                protections = await active_protections(settings, zygote, scratch.path, device=device)
                async with _signs_of_life(settings, database, queue, worker, runner, protections):
                    await _run_until(worker, stop)
        finally:
            await database.close()


def stop_on_signals(stop: asyncio.Event, *, supervised: bool) -> None:
    """Sets ``stop`` on SIGTERM, on SIGINT, and, where supervised, when the supervisor's end of stdin closes."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if supervised:
        loop.add_reader(sys.stdin.fileno(), _stop_at_end, loop, stop)


def _stop_at_end(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    if not os.read(sys.stdin.fileno(), 1024):
        loop.remove_reader(sys.stdin.fileno())
        stop.set()


def _add_task(queue: procrastinate.App, runner: Runner) -> None:
    # Attempts are counted in the analysis, where every way of losing one is seen; the queue only repeats.
    @queue.task(name=RUN_ANALYSIS, pass_context=True, retry=procrastinate.RetryStrategy(wait=1))
    async def run_analysis(context: JobContext, analysis: str) -> None:
        await runner.run(UUID(analysis), context)


def _queue_worker(settings: Settings, queue: procrastinate.App, device: str) -> Worker:
    return Worker(
        queue,
        queues=queues_of(device),
        name=device,
        concurrency=1,
        fetch_job_polling_interval=settings.poll_seconds,
        abort_job_polling_interval=settings.poll_seconds,
        shutdown_graceful_timeout=settings.shutdown_seconds,
        delete_jobs="always",
        install_signal_handlers=False,
        update_heartbeat_interval=settings.heartbeat_seconds,
        stalled_worker_timeout=settings.stalled_seconds,
    )


async def _run_until(worker: Worker, stop: asyncio.Event) -> None:
    running = asyncio.create_task(worker.run(), name="worker")  # type: ignore[no-untyped-call]
    stopping = asyncio.create_task(stop.wait(), name="stop")
    await asyncio.wait([running, stopping], return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    worker.stop()  # type: ignore[no-untyped-call]
    await running


@asynccontextmanager
async def _signs_of_life(
    settings: Settings,
    database: Database,
    queue: procrastinate.App,
    worker: Worker,
    runner: Runner,
    protections: list[str],
) -> AsyncIterator[None]:
    async with database.transaction() as session:
        identity = await workers.register(session, device=runner.device, protections=protections)
    log.info("worker_ready", device=runner.device, protections=protections)

    async def beat() -> None:
        unfinished: set[int] = set()
        while True:
            try:
                async with database.transaction() as session:
                    await workers.seen(session, identity)
                # The queue's worker stops its own heartbeat before it waits for the running job at shutdown.
                if worker.worker_id is not None:
                    await queue.job_manager.update_heartbeat(worker.worker_id)
                    unfinished = await _retry_unfinished(queue, worker.worker_id, runner.running, unfinished)
                await rescue(settings, database, queue)
            except (SQLAlchemyError, ConnectorException, OSError) as error:
                log.warning("heartbeat_failed", error=str(error))
            await asyncio.sleep(settings.heartbeat_seconds)

    task = asyncio.create_task(beat(), name="signs of life")
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        async with database.transaction() as session:
            await workers.unregister(session, identity)


async def _retry_unfinished(
    queue: procrastinate.App, worker_id: int, running: set[int], seen_before: set[int]
) -> set[int]:
    """Retries this worker's jobs whose end could not be written, when a second look still finds them unfinished."""
    jobs = await queue.job_manager.list_jobs_async(status=Status.DOING.value, worker_id=worker_id)
    unfinished = {job.id: job for job in jobs if job.id is not None and job.id not in running}
    for number in unfinished.keys() & seen_before:
        log.warning("job_unfinished", job=number)
        await queue.job_manager.retry_job(unfinished[number])
    return set(unfinished)


async def rescue(settings: Settings, database: Database, queue: procrastinate.App) -> None:
    """Puts the jobs of silent workers back into the queue, and ends analyses that can't be tried again."""
    jobs = queue.job_manager
    for job in await jobs.get_stalled_jobs(seconds_since_heartbeat=settings.stalled_seconds):
        if job.id is None:
            continue
        analysis = UUID(str(job.task_kwargs["analysis"]))
        again = await _may_run_again(settings, database, analysis)
        log.warning("worker_lost", analysis=str(analysis), job=job.id, again=again)
        if again:
            await jobs.retry_job(job)
        else:
            await jobs.finish_job(job, Status.FAILED, delete_job=True)
    async with database.transaction() as session:
        for analysis in await repository.without_job(session):
            log.error("analysis_without_job", analysis=str(analysis))
            await repository.cancelled(session, analysis, allowed=("cancelling",))
            await repository.fail(session, analysis, worker_lost(settings.max_attempts))


async def _may_run_again(settings: Settings, database: Database, analysis: UUID) -> bool:
    async with database.transaction() as session:
        row = await repository.find(session, analysis)
        if row is None or row.state in FINAL_STATES:
            return False
        if row.state == "cancelling":
            await repository.cancelled(session, analysis)
            return False
        if row.attempts >= settings.max_attempts:
            await repository.fail(session, analysis, worker_lost(row.attempts))
            return False
        return True
