"""Changed files in the child as it is deployed: confined, with limits on time and memory."""

from __future__ import annotations

import asyncio
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from fuzz.corpus import BATCHES, FOUND, pairs
from fuzz.mutations import mutated
from service.child.entry import BATCH_FILE, ENTRY, MODEL_FILE, PRELOAD
from service.sandbox import Job, JobLimits, Outcome, Zygote

MEMORY, SECONDS = 1 << 30, 30.0
OPTIONS = {"moments": "none", "max_products": 2, "device": "cpu"}
AT_ONCE = 2


class Attack(NamedTuple):
    """What came of it."""

    tried: int
    """Number of files."""
    found: list[str]
    """What ended otherwise than with a report or a code."""


def attack(
    kind: str, *, runs: int | None = None, seconds: float = float("inf"), seed: str, keep: bool = False
) -> Attack:
    """Give changed files to a reader; with ``keep``, write those that it does not answer properly to ``FOUND``.

    Args:
        kind: Suffix of the files to change.
        runs: Number of files; None for as many as the time allows.
        seconds: Time after which no further file is tried.
        seed: Determines the changes.
        keep: True to keep what was found.
    """
    return asyncio.run(_attack(kind, runs, time.monotonic() + seconds, seed, keep))


async def _attack(kind: str, runs: int | None, until: float, seed: str, keep: bool) -> Attack:
    found: list[str] = []
    tried = 0
    numbers = iter(range(runs if runs is not None else 1 << 62))

    async def one_after_another(zygote: Zygote) -> None:
        nonlocal tried
        for number in numbers:
            if time.monotonic() > until:
                return
            source = random.Random(f"{kind} {seed} {number}")
            content, other = source.choice(pairs(kind))
            changed = mutated(content, kind, source)
            told = wrong(await run(zygote, changed, other, kind))
            tried += 1
            if told:
                found.append(f"{kind} {seed} {number}: {told}")
                if keep:
                    FOUND.mkdir(exist_ok=True)
                    (FOUND / f"{seed}-{number}.{kind}").write_bytes(changed)

    async with Zygote(PRELOAD) as zygote:
        await asyncio.gather(*(one_after_another(zygote) for _ in range(AT_ONCE)))
    return Attack(tried, found)


async def run(zygote: Zygote, content: bytes, other: bytes, kind: str) -> Outcome:
    with tempfile.TemporaryDirectory() as name:
        folder = _folder(name, content, other, kind)
        request: dict[str, Any] = {"options": OPTIONS, "torchscript": "always", "max_model_bytes": 1 << 30}
        job = Job(
            folder=folder,
            entry=ENTRY,
            request=request,
            seconds=SECONDS,
            threads=1,
            limits=JobLimits(memory_bytes=MEMORY),
        )
        return await zygote.run(job)


def _folder(name: str, content: bytes, other: bytes, kind: str) -> Path:
    folder = Path(name)
    folder.chmod(0o755)  # the child may be another user
    changed, intact = (BATCH_FILE, MODEL_FILE) if kind in BATCHES else (MODEL_FILE, BATCH_FILE)
    (folder / changed).write_bytes(content)
    (folder / intact).write_bytes(other)
    return folder


def wrong(outcome: Outcome) -> str:
    """Describe an end that no file should lead to; empty for a report or an error with a code."""
    if outcome.error is None:
        json.loads(outcome.result or "")
        return ""
    if outcome.status in ("failed", "out_of_memory") and outcome.error.code != "internal_error":
        return ""
    return f"{outcome.status} {outcome.error.code}: {outcome.log[-800:]}"
