"""How tests are shared out to processes, and where the service's log lines go."""

from __future__ import annotations

import pytest
import structlog


def pytest_configure() -> None:
    # Lines of background threads come between tests as well, where only logging is captured.
    structlog.configure(logger_factory=structlog.stdlib.LoggerFactory())


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep tests that share a fixture of their module in one process; whichever is free takes each of the others."""
    for item in items:
        if isinstance(item, pytest.Function):
            fixtures = item._fixtureinfo.name2fixturedefs
            if any(found[-1].scope == "module" for found in fixtures.values()):
                item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))
