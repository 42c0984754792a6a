"""Whatever is killed, and whenever: each accepted analysis ends once, with one report, and nothing stays behind."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable

import pytest
from resilience.harness import KINDS, Plan, Run, jobs_left, kill_all, rows, running, wait_until_final
from support.service import until

SEEDS = [int(seed) for seed in os.environ.get("RESILIENCE_SEEDS", "1 2 3").split()]


@pytest.mark.slow  # tests/cluster kills as much on every change
def test_nothing_is_lost_or_done_twice_when_processes_are_killed(say: Callable[[str], None]) -> None:
    seed = int(os.environ.get("RESILIENCE_SEED", "1"))
    play(Plan.make(seed, analyses=8, kinds=("tree", "postmaster", "worker", "child")), say, seconds=300)


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_is_lost_or_done_twice_in_a_long_series_of_kills(seed: int, say: Callable[[str], None]) -> None:
    play(Plan.make(seed, analyses=100, kinds=KINDS, rounds=3), say, seconds=900)


def play(plan: Plan, say: Callable[[str], None], *, seconds: float) -> None:
    started = time.monotonic()
    with running(plan, say) as run:
        kill_all(run, say)
        until(lambda: len(run.accepted) == plan.analyses, seconds=seconds)
        wait_until_final(run, seconds, say)
        run.over.set()
        check_database(run, say)
        assert run.tree.stop() == 0
        until(lambda: not run.tree.survivors())
        assert [*run.tree.data.glob("jobs/scratch-*"), *run.tree.data.glob("blobs/incoming/scratch-*")] == []
    say(f"seed {plan.seed}: passed in {time.monotonic() - started:.0f} s, {run.tree.restarts} restarts")


def check_database(run: Run, say: Callable[[str], None]) -> None:
    found = rows(run)
    attempts = Counter(row["attempts"] for row in found)
    say(f"analyses by attempts: {dict(sorted(attempts.items()))}; clients tried again after {dict(run.retries)}")
    assert run.unexpected == []
    assert [row for row in found if row["state"] != "succeeded"] == []
    assert {row["reports"] for row in found} == {1}
    assert Counter(row["labels"]["number"] for row in found) == Counter(map(str, range(run.plan.analyses)))
    assert {row["id"] for row in found} == set(run.accepted.values())
    until(lambda: not jobs_left(run))
