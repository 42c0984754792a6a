"""How tests are shared out to processes, and where the service's log lines go."""

from __future__ import annotations

from pathlib import Path

import pytest
import structlog

ENGINE = Path(__file__).parent / "engine"


def pytest_configure() -> None:
    # Lines of background threads come between tests as well, where only logging is captured.
    structlog.configure(logger_factory=structlog.stdlib.LoggerFactory())


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep a module together in one process, which shares its services, and start it early.

    Tests of the engine share nothing: one by one they fill up what the modules leave, so that all processes end at
    about the same time.
    """
    items.sort(key=lambda item: ENGINE in item.path.parents)
    for item in items:
        if ENGINE not in item.path.parents:
            item.add_marker(pytest.mark.xdist_group(item.path.relative_to(ENGINE.parent).as_posix()))
