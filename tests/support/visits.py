"""A browser on the pages of a service."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import BrowserContext, ConsoleMessage, Page, Request

SEEN_IN_LOG = "Failed to load resource: the server responded with a status of"
"""What Chromium says of every page whose status is an error, be it meant or not."""


class Visit:
    """One browser: its page, and what it complained of or asked of anyone but the service."""

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.context = context
        self.noticed: list[str] = []
        self._url = url
        self.page: Page = context.new_page()
        self.page.on("console", self._complained)
        self.page.on("pageerror", lambda error: self.noticed.append(str(error)))
        self.page.on("request", self._asked)

    def choose(self, model: Path, batch: Path) -> None:
        """Chooses both files in the form."""
        self.page.get_by_label("Model", exact=True).set_input_files(model)
        self.page.get_by_label("Batch", exact=True).set_input_files(batch)

    def _complained(self, message: ConsoleMessage) -> None:
        if not message.text.startswith(SEEN_IN_LOG):
            self.noticed.append(message.text)

    def _asked(self, request: Request) -> None:
        if not request.url.startswith(self._url):
            self.noticed.append(request.url)
