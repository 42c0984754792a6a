from __future__ import annotations

import time
from collections.abc import Callable

import pytest


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Prints a line with the time at once, whether or not pytest keeps output back."""
    started = time.monotonic()

    def print_line(text: str) -> None:
        with capsys.disabled():
            print(f"\n{time.monotonic() - started:6.1f} s  {text}", end="", flush=True)

    return print_line
