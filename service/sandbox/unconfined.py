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
from contextlib import suppress

from service.sandbox.child import check, unconfined_frame
from service.sandbox.confinement import child_environment
from service.sandbox.diagnosis import Evidence, Exit, ProgressCallback, diagnose, observe
from service.sandbox.job import LOG_NAME, Job, JobError, Outcome
from service.sandbox.protocol import FrameDecoder, write_whole

_CHUNK_BYTES = 1 << 20
_LOG_TAIL_BYTES = 16 << 10
_KEPT_VARIABLES = ("DYLD_LIBRARY_PATH", "PATH", "SYSTEMROOT", "WINDIR")
"""Kept from the caller's environment: where macOS and Windows find libraries."""


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
            env=_environment(job),
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
        if not await observe(data, decoder, evidence, on_progress):
            return
    await process.wait()


def _environment(job: Job) -> dict[str, str]:
    """Return what a confined child gets, what other systems need besides, and where to import from; no secrets."""
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    temporary = dict.fromkeys(("TEMP", "TMP", "USERPROFILE"), str(job.folder))
    python = {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)), "PYTHONUTF8": "1"}
    return {**kept, **child_environment(job.folder, job.threads, gpu=job.gpu), **temporary, **python}


def main(entry: str, frame_bytes: str) -> None:
    """Run the entry on the request from stdin."""
    pipe = os.dup(1)
    os.dup2(2, 1)  # what libraries print goes to the log
    write_whole(pipe, unconfined_frame(entry, json.load(sys.stdin.buffer), pipe, frame_bytes=int(frame_bytes)))


if __name__ == "__main__":
    main(*sys.argv[1:])
