"""The worker: owns one device or several GPUs, takes analyses when there is room, and rescues those of lost workers."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID

import procrastinate
import structlog
from procrastinate import JobContext, jobs
from procrastinate.exceptions import ConnectorException
from procrastinate.jobs import Status
from procrastinate.manager import JobManager
from sqlalchemy.exc import SQLAlchemyError

from service.analyses import outcomes, repository
from service.analyses.table import FINAL_STATES
from service.child.entry import ENTRY, START_ENTRY
from service.child.protections import active_protections, required
from service.database import turns, workers
from service.database.engine import Database, patiently
from service.database.queue import RUN_ANALYSIS, open_queue, queues_of
from service.internals.queue import BaseConnector, Worker
from service.kit.background import background
from service.kit.devices import engine_names, usable_cores
from service.sandbox import Place, SandboxError, Zygote, delegated_group
from service.settings import Settings
from service.storage.factory import open_blobs
from service.storage.scratch import ScratchFolder
from service.traces import Tracing
from service.worker.children import Children
from service.worker.device import Device
from service.worker.runner import DEVICE_FAILED, Runner, worker_lost

log = structlog.get_logger(__name__)

_ENDING = 2
"""Number of analyses whose reports may be being stored while others compute."""
_FORGET_SECONDS = 3600
"""Age at which the queue deletes the row of a silent worker; its jobs are rescued long before."""
_STORE_SECONDS = 5.0
"""Time to store the outcome of the running job after its time is up."""


async def work(
    settings: Settings,
    database_url: str,
    *,
    device: str,
    stop: asyncio.Event,
    zygote: Zygote,
    entry: str = ENTRY,
    hurry: asyncio.Event | None = None,
) -> None:
    """Run analyses until ``stop`` is set; the running one then has ``shutdown_seconds`` to finish.

    If the database goes away meanwhile, wait for it for ``database_patience_seconds``. If it can't be reached at the
    start, fail at once, because the URL may be wrong.

    Args:
        settings: Limits and folders.
        database_url: URL of a database with current tables.
        device: Name of the worker: cpu, cuda:N, or several GPUs as ``several_devices`` names them; other workers take
            the analyses that request another device.
        stop: Ends the work.
        zygote: Zygote that has preloaded the modules of ``entry``; closed at the end.
        entry: Entry point that a child runs.
        hurry: Cuts short the time that the running analysis has after ``stop``.

    Raises:
        SandboxError: if no child can be run on this host, or if it lacks a protection that the settings require;
            ``device_failed`` if the device does not work, at the start or from some analysis on.
    """
    structlog.contextvars.bind_contextvars(device=device)
    database, tracing = Database.configured(database_url, settings), Tracing(settings.otlp_endpoint)
    patience = settings.database_patience_seconds
    queue = open_queue(database_url, patience=patience)
    group = delegated_group()
    with ScratchFolder(settings.job_dir) as scratch:
        try:
            await database.migrate()
            async with zygote, queue.open_async(), tracing.exporting():
                place = _place(settings, device, scratch.path, group, entry)

                async def tried() -> list[str]:
                    return await active_protections(
                        settings, zygote, scratch.path, device=device, group=group, try_device=True
                    )

                runner = Runner(
                    settings=settings,
                    database=database,
                    blobs=open_blobs(settings),
                    children=Children(zygote, place),
                    name=device,
                    device=Device(_threads(settings, device)),
                    tracing=tracing,
                    try_device=lambda: _problem(tried),
                )
                attempts = _add_task(queue, runner)
                worker = _queue_worker(settings, queue, runner)
                protections = await _telling_problems(tried, settings, database, device)
                async with _signs_of_life(settings, database, queue, worker, runner, protections):
                    runner.children.fork_ahead()
                    try:
                        await _run_until(worker, stop, hurry or asyncio.Event(), attempts, runner.device)
                    finally:
                        await runner.children.close()
                if runner.device.problem is not None:
                    raise _left(runner.device.problem)
        finally:
            await database.close()


async def _problem(tried: Callable[[], Awaitable[list[str]]]) -> str | None:
    """Return why the device does not work; None if it does."""
    try:
        await tried()
    except SandboxError as error:
        return error.message
    return None


async def _telling_problems(
    tried: Callable[[], Awaitable[list[str]]], settings: Settings, database: Database, device: str
) -> list[str]:
    """Return the active protections; if the device does not work, record why before the error goes on."""
    try:
        return await tried()
    except SandboxError as error:
        if error.code == DEVICE_FAILED:
            async with database.transaction() as session:
                await workers.register(
                    session,
                    device=device,
                    protections=[],
                    memory_bytes=settings.job_bytes,
                    problem=error.message,
                )
        raise


def _left(problem: str) -> SandboxError:
    return SandboxError(
        problem,
        code=DEVICE_FAILED,
        advice="Look into the driver's log (dmesg); the analyses go to other workers.",
    )


def _place(settings: Settings, device: str, folder: Path, group: Path | None, entry: str) -> Place:
    return Place(
        folder=folder,
        entry=entry,
        threads=settings.job_threads,
        limits=settings.job_limits,
        gpu=device != "cpu",
        ahead=() if device == "cpu" else (START_ENTRY, *engine_names(device)),
        group=group,
        required=required(settings),
    )


def stop_on_signals(stop: asyncio.Event, hurry: asyncio.Event, *, supervised: bool) -> None:
    """Set ``stop`` on SIGTERM, on SIGINT and, if supervised, when the supervisor closes stdin.

    A second signal sets ``hurry``.
    """
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: (hurry if stop.is_set() else stop).set())
    if supervised:
        loop.add_reader(sys.stdin.fileno(), _stop_at_end, loop, stop)


def _stop_at_end(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    if not os.read(sys.stdin.fileno(), 1024):
        loop.remove_reader(sys.stdin.fileno())
        stop.set()


def _add_task(queue: procrastinate.App, runner: Runner) -> set[asyncio.Task[None]]:
    """Connect the queue to the runner; return the set of running attempts, which is kept up to date."""
    attempts: set[asyncio.Task[None]] = set()

    queue.job_manager = _Jobs(queue.connector, runner)

    # Attempts are counted in the analysis, which sees every way of losing one; the queue only repeats.
    @queue.task(name=RUN_ANALYSIS, pass_context=True, retry=procrastinate.RetryStrategy(wait=1))
    async def run_analysis(context: JobContext, analysis: str, traceparent: str | None = None) -> None:
        attempt = asyncio.current_task()
        assert attempt is not None  # noqa: S101 - this is a coroutine
        attempts.add(attempt)
        try:
            await runner.run(UUID(analysis), context, traceparent)
        finally:
            attempts.discard(attempt)

    return attempts


class _Jobs(JobManager):
    """Takes a job from the queue only if the device has room for it; tenants take turns."""

    def __init__(self, connector: BaseConnector, runner: Runner) -> None:
        super().__init__(connector)
        self._device, self._name = runner.device, runner.name
        self._weights = runner.settings.tenant_weights

    async def fetch_job(self, queues: Iterable[str] | None, worker_id: int) -> jobs.Job | None:
        if not await self._device.room():
            return None
        served = queues_of(self._name) if queues is None else queues
        job = await turns.claim(self.connector, served, worker_id, device=self._name, weights=self._weights)
        if job is not None and job.task_name == RUN_ANALYSIS and job.id is not None:
            self._device.add(job.id)
        return job


def _threads(settings: Settings, device: str) -> int:
    """Number of small analyses that run concurrently."""
    if device != "cpu":
        return 1
    return settings.small_jobs or settings.job_threads or usable_cores()


def _queue_worker(settings: Settings, queue: procrastinate.App, runner: Runner) -> Worker:
    return Worker(
        queue,
        queues=queues_of(runner.name),
        name=runner.name,
        concurrency=runner.device.threads + _ENDING,
        fetch_job_polling_interval=settings.poll_seconds,
        abort_job_polling_interval=settings.poll_seconds,
        shutdown_graceful_timeout=settings.shutdown_seconds,
        delete_jobs="always",
        install_signal_handlers=False,
        update_heartbeat_interval=settings.heartbeat_seconds,
        stalled_worker_timeout=_FORGET_SECONDS,
    )


async def _run_until(
    worker: Worker, stop: asyncio.Event, hurry: asyncio.Event, attempts: set[asyncio.Task[None]], device: Device
) -> None:
    running = asyncio.create_task(worker.run(), name="worker")  # type: ignore[no-untyped-call]
    await _first(running, stop, device.failed)
    device.close()
    worker.stop()  # type: ignore[no-untyped-call]
    grace = float(worker.shutdown_graceful_timeout or 0)
    await _first(running, hurry, seconds=grace + _STORE_SECONDS)
    if hurry.is_set() and not running.done():
        for attempt in attempts:
            attempt.cancel()  # which puts the analysis back into the queue
        await asyncio.wait([running], timeout=_STORE_SECONDS)
    if running.done():
        await running
    else:
        log.error("job_abandoned")  # the database is away; another worker will rescue the job


async def _first(task: asyncio.Task[None], *events: asyncio.Event, seconds: float | None = None) -> None:
    """Wait until the task is done or an event is set, for at most ``seconds``."""
    waiting = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait([task, *waiting], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in waiting:
            each.cancel()


@asynccontextmanager
async def _signs_of_life(
    settings: Settings,
    database: Database,
    queue: procrastinate.App,
    worker: Worker,
    runner: Runner,
    protections: list[str],
) -> AsyncIterator[None]:

    async def register() -> UUID:
        async with database.transaction() as session:
            return await workers.register(
                session, device=runner.name, protections=protections, memory_bytes=settings.job_bytes
            )

    identity = await patiently(register, seconds=settings.database_patience_seconds)
    log.info("worker_ready", device=runner.name, protections=protections)

    async def beat() -> None:
        unfinished: set[int] = set()
        last = steady_since = time.monotonic()
        while True:
            try:
                async with database.transaction() as session:
                    await workers.seen(session, identity)
                # The queue's worker stops its own heartbeat before it waits for the running job at shutdown.
                if worker.worker_id is not None:
                    await queue.job_manager.update_heartbeat(worker.worker_id)
                    unfinished = await _retry_unfinished(queue, worker.worker_id, runner.running, unfinished)
                # After an outage of the database all workers have been silent; give the others time to report.
                if time.monotonic() - last > 2 * settings.heartbeat_seconds:
                    steady_since = time.monotonic()
                if time.monotonic() - steady_since > settings.stalled_seconds:
                    await rescue(settings, database, queue)
                last = time.monotonic()
            except (SQLAlchemyError, ConnectorException, OSError) as error:
                log.warning("heartbeat_failed", error=str(error).partition("\n")[0])
                steady_since = time.monotonic()
            await asyncio.sleep(settings.heartbeat_seconds)

    try:
        async with background(beat(), "signs of life"):
            yield
    finally:
        try:
            async with database.transaction() as session:
                if runner.device.problem is None:
                    await workers.unregister(session, identity)
                else:
                    await workers.leave(session, identity, runner.device.problem)
        except SQLAlchemyError as error:
            log.warning("worker_not_unregistered", error=str(error).partition("\n")[0])


async def _retry_unfinished(
    queue: procrastinate.App, worker_id: int, running: set[int], seen_before: set[int]
) -> set[int]:
    """Retry this worker's jobs whose end could not be stored, if they are still unfinished at the second look."""
    jobs = await queue.job_manager.list_jobs_async(status=Status.DOING.value, worker_id=worker_id)
    unfinished = {job.id: job for job in jobs if job.id is not None and job.id not in running}
    for number in unfinished.keys() & seen_before:
        log.warning("job_unfinished", job=number)
        await queue.job_manager.retry_job(unfinished[number])
    return set(unfinished)


async def rescue(settings: Settings, database: Database, queue: procrastinate.App) -> None:
    """Put the jobs of silent workers back into the queue, and end analyses that have no attempts left."""
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
            await outcomes.fail(session, analysis, worker_lost(settings.max_attempts))


async def _may_run_again(settings: Settings, database: Database, analysis: UUID) -> bool:
    async with database.transaction() as session:
        row = await repository.find_anyones(session, analysis)
        if row is None or row.state in FINAL_STATES:
            return False
        if row.state == "cancelling":
            await repository.cancelled(session, analysis)
            return False
        if row.attempts >= settings.max_attempts:
            await outcomes.fail(session, analysis, worker_lost(row.attempts))
            return False
        return True
