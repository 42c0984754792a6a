"""One analysis for the command line, on a server."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from pydantic import SecretStr

from service.cli.evaluate import InvalidInputError, NotEvaluatedError, ended, failure, may_have_data_files, read_report
from service.cli.progress import ProgressSink
from wsb_engine.errors import EngineError
from wsb_engine.formats.digest import model_digest
from wsb_engine.options import Options
from wsb_engine.report import Report

if TYPE_CHECKING:
    import httpx

_SERVER_SECONDS = 60
_STORE_SECONDS = 600
"""How long a server may take to store files after they have arrived."""
_POLL_SECONDS = 0.5
_PROGRESS_BYTES = 1 << 20
"""Shortest distance between two messages about the progress of an upload."""


def evaluate_there(
    url: str,
    model: Path,
    batch: Path,
    options: Options,
    *,
    seconds: float | None,
    progress: ProgressSink,
    key: SecretStr | None = None,
    more: Mapping[str, Any] | None = None,
) -> Report:
    """Send both files to a server and follow the analysis until it ends; an interrupt cancels it there.

    Args:
        url: URL of the server.
        model: Model file.
        batch: Batch file.
        options: Options of the engine.
        seconds: Wall-clock limit that the server applies; None for the server's default.
        progress: Called with the progress of the analysis.
        key: API key, if the server requires one.
        more: Further fields of the request: names, labels, and policy and baseline if the analysis depends on them.

    Raises:
        InvalidInputError, NotEvaluatedError: with a message for the user.
    """
    import httpx

    request: dict[str, Any] = {"options": options.model_dump(mode="json"), **(more or {})}
    if seconds is not None:
        request["timeout_s"] = seconds
    data = _data_files(model)
    try:
        with httpx.Client(base_url=url, timeout=_SERVER_SECONDS, headers=_authorization(key)) as client:
            stored = _stored(client, model, data, batch)
            response = _submitted(client, model, data, batch, {**request, **stored}, progress)
            if stored and response.status_code == HTTPStatus.NOT_FOUND:  # deleted in between
                response = _submitted(client, model, data, batch, request, progress)
            analysis = _accepted(response)
            try:
                return _follow(client, analysis["links"]["self"], progress)
            except KeyboardInterrupt:
                client.post(f"{analysis['links']['self']}/cancel")
                raise
    except httpx.HTTPError as error:
        raise NotEvaluatedError(f"{url} can't be reached: {error or type(error).__name__}") from error


def _data_files(model: Path) -> dict[str, Path]:
    """Return the data files of a model, by the names by which it refers to them."""
    if not may_have_data_files(model):
        return {}
    from wsb_engine.formats.load import external_files  # loads torch

    try:
        return external_files(model)
    except EngineError as error:
        raise failure(error.code, error.message, error.advice, broke_down=False) from error


def _stored(client: httpx.Client, model: Path, data: Mapping[str, Path], batch: Path) -> dict[str, str]:
    """Return the identifiers of the model and the batch, if the server has them."""
    parts = {name: _size_and_digest(path) for name, path in data.items()}
    digests = {
        "model": ("models", model_digest(_size_and_digest(model), parts)),
        "batch": ("batches", _size_and_digest(batch)[1]),
    }
    return {
        name: f"sha256:{digest}"
        for name, (kind, digest) in digests.items()
        if client.head(f"/v1/{kind}/sha256:{digest}").is_success
    }


def _size_and_digest(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()


def _submitted(
    client: httpx.Client,
    model: Path,
    data: Mapping[str, Path],
    batch: Path,
    request: Mapping[str, Any],
    progress: ProgressSink,
) -> httpx.Response:
    """Ask for the analysis; send each of the files that ``request`` does not name."""
    import httpx

    parts = [] if "model" in request else [("model", "model", model), *(("model_data", *each) for each in data.items())]
    parts += [] if "batch" in request else [("batch", "batch", batch)]
    sent = _Sent(sum(path.stat().st_size for _, _, path in parts), progress)
    with ExitStack() as stack:
        files: list[tuple[str, tuple[str, Any]]] = [
            (part, (name, _Counted(stack.enter_context(path.open("rb")), sent))) for part, name, path in parts
        ]
        files.append(("request", ("request", json.dumps(request).encode())))
        return client.post("/v1/analyses", files=files, timeout=httpx.Timeout(_SERVER_SECONDS, read=_STORE_SECONDS))


class _Sent:
    """Reports how much of an upload has been sent.

    Args:
        total: Bytes of all files.
        progress: Called from time to time.
    """

    def __init__(self, total: int, progress: ProgressSink) -> None:
        self._total = total
        self._progress = progress
        self._sent = self._reported = 0

    def add(self, size: int) -> None:
        self._sent += size
        if self._sent >= self._reported + _PROGRESS_BYTES:
            self._reported = self._sent
            self._progress({"phase": "upload", "fraction": self._sent / self._total})


class _Counted:
    """A file that counts what is read from it."""

    def __init__(self, file: BinaryIO, sent: _Sent) -> None:
        self._file = file
        self._sent = sent

    def fileno(self) -> int:
        return self._file.fileno()

    def read(self, size: int) -> bytes:
        content = self._file.read(size)
        self._sent.add(len(content))
        return content


def _authorization(key: SecretStr | None) -> dict[str, str]:
    if key is None:
        return {}
    # Checked here, because httpx would print the key in its error about an invalid header.
    text = key.get_secret_value().strip()
    if not (text.isascii() and text.isprintable()):
        raise InvalidInputError("WSB_API_KEY contains characters that no key has.")
    return {"Authorization": f"Bearer {text}"}


def _follow(client: httpx.Client, path: str, progress: ProgressSink) -> Report:
    while True:
        analysis = _accepted(client.get(path))
        if analysis["state"] == "succeeded":
            return read_report(client.get(analysis["links"]["report"]).text)
        if analysis["finished_at"] is not None:
            state = analysis["state"]
            error = analysis["error"] or {"code": state, "message": "The analysis ended early.", "advice": ""}
            raise ended(state, error["code"], error["message"], error["advice"])
        if analysis["progress"] is not None:
            progress(analysis["progress"])
        time.sleep(_POLL_SECONDS)


def _accepted(response: httpx.Response) -> dict[str, Any]:
    content: dict[str, Any] = {}
    with suppress(ValueError):
        content = response.json()
    if response.is_success:
        return content
    message = content.get("detail") or f"The server answered {response.status_code}."
    errors = "".join(f"\n{item['pointer']}: {item['detail']}" for item in content.get("errors", ()))
    code = content.get("code", f"http_{response.status_code}")
    raise failure(code, message + errors, content.get("advice", ""), broke_down=response.status_code >= 500)
