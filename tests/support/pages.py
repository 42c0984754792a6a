"""The web pages as a visitor without a browser sees them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from html import unescape
from typing import Any

import httpx

from support.client import connect
from support.policies import report
from support.service import DEADLINE, Service, npz_batch, onnx_mlp

# What the form has in it before anything is typed, switches that are on included.
UNTOUCHED = {"spectrum": "none", "top": "10", "dtype": "auto", "moments": "auto", "head": "auto", "enclosure": "on"}


class Visitor:
    """Asks for pages and posts forms as a page of the service would."""

    def __init__(self, url: str, prefix: str = "") -> None:
        headers = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8", "Origin": url}
        self.client = connect(url, headers=headers, timeout=DEADLINE)
        self.prefix = prefix

    def get(self, path: str, **more: Any) -> httpx.Response:
        return self.client.get(self.prefix + path, **more)

    def post(self, path: str, *, csrf: str | None = None, **fields: str) -> httpx.Response:
        """Presses a button, or signs in."""
        return self.client.post(self.prefix + path, data={"csrf": self.csrf() if csrf is None else csrf, **fields})

    def csrf(self) -> str:
        found = re.search(r'name="csrf" value="(\w*)"', self.get("/").text)
        return found[1] if found else ""

    def sign_in(self, key: str, **fields: str) -> httpx.Response:
        return self.client.post(self.prefix + "/sign-in", data={"key": key, **fields})

    def ask(
        self,
        *,
        model: bytes | None = onnx_mlp(),
        batch: bytes | None = npz_batch(),
        data: Mapping[str, bytes] | None = None,
        csrf: str | None = None,
        **fields: str,
    ) -> httpx.Response:
        """Sends the form for an analysis; None for a file that was not chosen."""
        typed = {"csrf": self.csrf() if csrf is None else csrf, **UNTOUCHED, **fields}
        parts = [(name, (None, value)) for name, value in typed.items()]
        files = [
            ("model", (model and "m.onnx") or "", model or b""),
            ("batch", (batch and "b.npz") or "", batch or b""),
            *(("model_data", *each) for each in (data or {}).items()),
        ]
        parts += [(name, (file or "none", content)) for name, file, content in files]
        return self.client.post(self.prefix + "/analyses", files=parts)

    def asked(self, **fields: Any) -> str:
        """Identifier of the analysis that the form made."""
        response = self.ask(**fields)
        assert response.status_code == 303, response.text
        return response.headers["location"].rpartition("/")[2]


def analysed(service: Service, visitor: Visitor, labels: str = "", *, rate: str = "", **parts: Any) -> str:
    """An analysis with a report of these numbers."""
    analysis = visitor.asked(labels=labels, fresh="on", learning_rate=rate)
    service.ended(analysis)
    service.sql("UPDATE reports SET body = %s WHERE analysis = %s", report(**parts).model_dump_json(), analysis)
    return analysis


def table_rows(text: str) -> dict[str, list[str]]:
    """Cells of the page's tables by what heads their row."""
    found = {}
    for head, cells in re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', text, re.DOTALL):
        plain = [re.sub(r"<[^>]+>", " ", cell).strip() for cell in re.findall(r"<td[^>]*>(.*?)</td>", cells, re.DOTALL)]
        found[re.sub(r"<[^>]+>", "", head)] = plain
    return found


def field_errors(text: str) -> dict[str, str]:
    """What the page says beside its fields, by field."""
    found = re.findall(r'<p class="wrong" id="(\w+)-error"[^>]*>(.*?)</p>', text, re.DOTALL)
    return {name: unescape(error) for name, error in found}


def value_of(text: str, name: str) -> str:
    """What the page has in a field."""
    area = re.search(rf'<textarea id="{name}"[^>]*>\n?(.*?)</textarea>', text, re.DOTALL)
    if area:
        return unescape(area[1])
    chosen = re.search(rf'<select id="{name}".*?value="([^"]*)" selected.*?</select>', text, re.DOTALL)
    if chosen:
        return unescape(chosen[1])
    plain = re.search(rf'name="{name}"[^>]*? value="([^"]*)"', text)
    assert plain, f"the page has no field {name}"
    return unescape(plain[1])
