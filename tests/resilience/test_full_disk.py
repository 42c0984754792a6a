"""A full disk costs no accepted analysis, however long it lasts: all of them end once there is room again."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from resilience.harness import Plan, fill_disk, running, wait_until_final
from resilience.test_kills import check_database
from support.service import until


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a disk that fills up")
def test_nothing_is_lost_while_the_disk_is_full(say: Callable[[str], None]) -> None:
    plan = Plan.make(1, analyses=25, kinds=("disk", "disk"))
    settings = {"WSB_MAX_ATTEMPTS": "3", "WSB_MIN_FREE_BYTES": "0", "WSB_DATABASE_PATIENCE_SECONDS": "10"}
    with running(plan, say, settings=settings, disk=True) as run:
        for number, seconds in enumerate((20.0, 40.0), 1):
            until(lambda number=number: len(run.accepted) >= 4 * number)
            fill_disk(run, seconds, say)
            run.kills = number
            run.tree.wait_until_ready()
        until(lambda: len(run.accepted) == plan.analyses, seconds=300)
        wait_until_final(run, 300, say)
        run.over.set()
        check_database(run, say)
