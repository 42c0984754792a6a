"""Visitors of the pages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from support.pages import Visitor
from support.service import Service

Visit = Callable[..., Visitor]


@pytest.fixture
def visit() -> Iterator[Visit]:
    """Makes a visitor of a service."""
    with ExitStack() as stack:

        def make(service: Service, prefix: str = "") -> Visitor:
            visitor = Visitor(service.url, prefix)
            stack.enter_context(visitor.client)
            return visitor

        yield make
