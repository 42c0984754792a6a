"""Whether CUDA starts inside the sandbox, and how long an analysis waits for it."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from findings import Finding, short
from machine import Machine

from service.child.entry import BATCH_FILE, ENTRY, MODEL_FILE, PRELOAD, START_ENTRY
from service.child.protections import REQUIRED, active_protections
from service.child.sample_analysis import batch, model
from service.sandbox import Outcome, Place, SandboxError, Zygote
from service.settings import Settings

AHEAD_SECONDS = 15.0
"""Pause in which a child that was forked ahead starts its GPU."""


def findings(machine: Machine) -> Iterator[Finding]:
    with tempfile.TemporaryDirectory() as name:
        yield from asyncio.run(_found(machine, Path(name)))


async def _found(machine: Machine, folder: Path) -> list[Finding]:
    settings = Settings(_env_file=None)
    started = time.perf_counter()
    async with Zygote(PRELOAD) as zygote:
        ready = time.perf_counter() - started
        found = [Finding("the zygote is ready after", short(ready))]
        try:
            started = time.perf_counter()
            active = await active_protections(settings, zygote, folder, device=machine.name, try_device=not machine.dry)
        except SandboxError as error:
            return [*found, Finding("the GPU computes inside the sandbox", error.message, "it does", False)]
        seconds = time.perf_counter() - started
        found.append(Finding("the GPU computes inside the sandbox", f"after {short(seconds)}", "it does", True))
        missing = sorted(set(REQUIRED) - set(active))
        told = ", ".join(missing) or "none"
        found.append(Finding("required protections that are missing", told, "none", not missing))
        for ahead in (False, True):
            outcome = await _analysed(zygote, machine, folder, ahead=ahead)
            what = "a small analysis on the GPU" + (", whose child was forked ahead" if ahead else "")
            told = short(outcome.seconds) if outcome.error is None else f"{outcome.error.code}: {outcome.error.message}"
            met = outcome.error is None and (not ahead or outcome.seconds <= 1 or machine.dry)
            found.append(Finding(what, told, "at most 1 s" if ahead else "it succeeds", met))
    return found


async def _analysed(zygote: Zygote, machine: Machine, folder: Path, *, ahead: bool) -> Outcome:
    with tempfile.TemporaryDirectory(dir=folder) as job:
        _write_files(Path(job))
        start = () if machine.dry else (START_ENTRY, machine.name)
        child = await zygote.fork(Place(folder=Path(job), entry=ENTRY, gpu=not machine.dry, ahead=start))
        try:
            if ahead:
                await asyncio.sleep(machine.of(1, 0) * AHEAD_SECONDS)
            request = {
                "options": {"device": machine.name, "dtype": "float64"},
                "torchscript": "never",
                "max_model_bytes": 1 << 30,
            }
            return await child.run(request, 120.0)
        finally:
            await child.end()


def _write_files(folder: Path) -> None:
    (folder / MODEL_FILE).write_bytes(model())
    (folder / BATCH_FILE).write_bytes(batch())
