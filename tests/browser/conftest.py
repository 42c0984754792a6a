"""Chromium without a window: ``chromium`` on the path, or the program that WSB_TEST_CHROMIUM names."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    program = os.environ.get("WSB_TEST_CHROMIUM") or shutil.which("chromium")
    if program is None:
        lacking = "no chromium on the path, and WSB_TEST_CHROMIUM names none"
        if os.environ.get("CI") == "true":
            pytest.fail(lacking)
        pytest.skip(lacking)
    with sync_playwright() as playwright:
        # its own sandbox does not work as root, and pages here are ours
        opened = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()
