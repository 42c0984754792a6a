"""A job in an ordinary process, for systems without what the sandbox needs; only its time is limited.

    python -m service.sandbox.unconfined ENTRY FRAME_BYTES

reads the request as JSON from stdin and writes frames to stdout.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from service.sandbox.child import check, unconfined_frame
from service.sandbox.diagnosis import Evidence, Exit, diagnose
from service.sandbox.job import LOG_NAME, Job, JobError, Outcome
from service.sandbox.protocol import FrameDecoder, Progress, ProtocolError, write_whole

_CHUNK_BYTES = 1 << 20
_LOG_TAIL_BYTES = 16 << 10


ProgressCallback = Callable[[dict[str, Any]], None]


async def run_unconfined(job: Job, on_progress: ProgressCallback | None = None) -> Outcome:
    """Run one job to its end in a new process, which is killed when its time is up or this is cancelled.

    Raises:
        SandboxError: ``sandbox_insufficient`` if the job requires any protection.
    """
    check((), job.required)
    started, evidence = time.monotonic(), Evidence()
    with open(job.folder / LOG_NAME, "w+b") as log:  # noqa: ASYNC230 - on this disk
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", __name__, job.entry, str(job.limits.frame_bytes)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            cwd=job.folder,
            env=_environment(),
        )
        limit = asyncio.timeout(job.seconds)
        try:
            async with limit:
                await _converse(process, job, evidence, on_progress)
        except TimeoutError:
            if not limit.expired():
                raise
            evidence.timed_out = True
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            code = await process.wait()
        log.seek(max(0, log.seek(0, os.SEEK_END) - _LOG_TAIL_BYTES))
        tail = log.read().decode(errors="replace")
    evidence.exit = Exit(status=-code if code < 0 else code << 8, peak_memory_bytes=0)
    status, ending = diagnose(evidence, seconds=job.seconds)
    return Outcome(
        status=status,
        interrupted=status == "crashed" and evidence.interrupted,
        result=ending if isinstance(ending, str) else None,
        error=ending if isinstance(ending, JobError) else None,
        exit_code=evidence.exit.code,
        exit_signal=evidence.exit.signal,
        peak_memory_bytes=None,
        seconds=time.monotonic() - started,
        log=tail,
    )


async def _converse(
    process: asyncio.subprocess.Process, job: Job, evidence: Evidence, on_progress: ProgressCallback | None
) -> None:
    """Send the request and read frames until the process ends or breaks the protocol."""
    assert process.stdin is not None and process.stdout is not None  # noqa: S101, PT018 - both are pipes
    with suppress(ConnectionError):  # the end of a process says why it read nothing
        request = {**job.request, "threads": job.threads, "sandbox": []}
        process.stdin.write(json.dumps(request, allow_nan=False).encode())
        await process.stdin.drain()
        process.stdin.close()
    decoder = FrameDecoder(job.limits.frame_bytes)
    while data := await process.stdout.read(_CHUNK_BYTES):
        try:
            frames = decoder.feed(data)
        except ProtocolError as error:
            evidence.violation = str(error)
            return
        for frame in frames:
            if not isinstance(frame, Progress):
                evidence.last_frame = frame
            elif on_progress is not None:
                on_progress(frame.fields)
    await process.wait()


def _environment() -> dict[str, str]:
    path = os.pathsep.join(os.path.abspath(folder) for folder in sys.path)
    return {**os.environ, "ORT_DISABLE_TELEMETRY": "1", "PYTHONPATH": path, "PYTHONUTF8": "1"}


def main(entry: str, frame_bytes: str) -> None:
    """Run the entry on the request from stdin."""
    pipe = os.dup(1)
    os.dup2(2, 1)  # what libraries print goes to the log
    write_whole(pipe, unconfined_frame(entry, json.load(sys.stdin.buffer), pipe, frame_bytes=int(frame_bytes)))


if __name__ == "__main__":
    main(*sys.argv[1:])
