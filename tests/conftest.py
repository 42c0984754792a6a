"""How tests are shared out to processes, and where the service's log lines go."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import structlog
from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).parents[1]
HEAVY = re.compile(r'"dynamo|dynamo=True|share_operators|from zoo import|require\("transformers"')
"""What only modules say that export by torch's newer exporter to ONNX or use transformers."""
WAITING = re.compile(r"tests/(browser|end_to_end|service)/")
"""Tests that wait more than they compute."""


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Iterator[object]:
    """Collects without collecting garbage: imports and items are many objects, and nearly all of them stay."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mixes tests that wait for services with those that compute, if several processes share them out.

    On simulated GPUs tests whose own tensors stay on the CPU are left out.
    """
    if config.getoption("--simulated"):
        from support import simulated

        left_out = {item for item in items if simulated.OF_THE_CPU.match(item.nodeid)}
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=list(left_out))
    if not hasattr(config, "workerinput"):
        return
    waiting = {item for item in items if WAITING.match(item.nodeid)}
    kinds = [[item for item in items if (item in waiting) is kind] for kind in (False, True)]
    places = {item: place / len(kind) for kind in kinds for place, item in enumerate(kind)}
    items.sort(key=places.__getitem__)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--simulated", action="store_true", help="analyse on a simulated GPU where a test does not choose")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--simulated"):
        from support import simulated

        simulated.everywhere()
    # Lines of background threads come between tests as well, where only logging is captured.
    # Tracebacks are plain: with the source and the variables of every frame, one takes seconds.
    renderer = structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(
        processors=[*structlog.get_config()["processors"][:-1], renderer],
        logger_factory=structlog.stdlib.LoggerFactory(),
    )


class Scheduling(LoadScopeScheduling):
    """Keeps a module with fixtures of its own in one process; whichever is free takes each of the other tests.

    One process also runs all modules that need the libraries which take longest to import.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return _scope(file) or nodeid


@cache
def _scope(file: str) -> str | None:
    source = (ROOT / file).read_text(encoding="utf-8")
    if HEAVY.search(source):
        return "heavy"
    return file if '@pytest.fixture(scope="module")' in source else None


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling:
    return Scheduling(config, log)
