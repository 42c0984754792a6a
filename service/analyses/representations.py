"""Media types of a report, and content negotiation between them."""

from __future__ import annotations

import hashlib
import re
from http import HTTPStatus
from typing import Any

from fastapi import Response
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from service.analyses.table import AnalysisRow, ReportRow
from service.errors import ServiceError
from service.http.headers import matches
from service.policies import Verdict
from service.rendering.registry import RENDERINGS
from wsb_engine.presentation.headline import Yardstick
from wsb_engine.report import Report

JSON = "application/json"
_RENDERINGS = {rendering.media_type: rendering for rendering in RENDERINGS}
MEDIA_TYPES = (JSON, *_RENDERINGS)
"""The first is the default."""

_IMMUTABLE = "private, max-age=31536000, immutable"
_QUALITY = re.compile(r"0(\.\d{0,3})?|1(\.0{0,3})?")


class NotAcceptableError(
    ServiceError, status=406, code="not_acceptable", title="The report is not available in an accepted media type"
):
    def __init__(self, detail: str) -> None:
        super().__init__(detail, advice=f"Accept one of {', '.join(MEDIA_TYPES)}.")


def negotiated(accept: str | None) -> str:
    """Return the media type that an Accept header (RFC 9110) prefers; of equals, the first in ``MEDIA_TYPES``.

    Raises:
        NotAcceptableError: if it accepts none of them.
    """
    if accept is None or not accept.strip():
        return JSON
    ranges = [_range(part) for part in accept.split(",") if part.strip()]
    qualities = {kind: _quality(kind, ranges) for kind in MEDIA_TYPES}
    best = max(MEDIA_TYPES, key=lambda kind: qualities[kind])
    if qualities[best] == 0:
        raise NotAcceptableError(f"The request accepts only {accept[:120]!r}.")
    return best


def _range(text: str) -> tuple[str, float]:
    """Parse a media range and its quality; other parameters are ignored."""
    name, *parameters = (part.strip().lower() for part in text.split(";"))
    quality = next((value for key, _, value in (p.partition("=") for p in parameters) if key.strip() == "q"), "1")
    return name, float(quality) if _QUALITY.fullmatch(quality.strip()) else 0.0


def _quality(kind: str, ranges: list[tuple[str, float]]) -> float:
    """Return the quality of the most specific range that includes the type."""
    for pattern in (kind, f"{kind.partition('/')[0]}/*", "*/*"):
        found = [quality for name, quality in ranges if name == pattern]
        if found:
            return max(found)
    return 0.0


async def represent(
    row: AnalysisRow,
    report: ReportRow,
    kind: str,
    yardstick: Yardstick | None = None,
    *,
    if_none_match: str | None = None,
) -> Response:
    """Respond with the report as ``kind``, including the verdict if its analysis has one.

    Args:
        row: The analysis.
        report: Its report.
        kind: Media type.
        yardstick: What the report's first sentence compares with.
        if_none_match: Entity tags of the client's copies.

    Raises:
        NotAcceptableError: if the report is of an older version, of which only JSON is available.
    """
    if kind == JSON:
        body, etag = report.body.encode(), report.sha256
    else:
        body = await run_in_threadpool(_rendered, row, report, kind, yardstick)
        etag = hashlib.sha256(body).hexdigest()
    headers = {
        "ETag": f'"{etag}"',
        "Vary": "Accept",
        # A later version may render the report differently; the JSON never changes.
        "Cache-Control": _IMMUTABLE if kind == JSON else "private, no-cache",
    }
    if matches(if_none_match, headers["ETag"]):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    if kind in _RENDERINGS:
        headers |= _RENDERINGS[kind].headers
    return Response(body, headers=headers, media_type=kind)


def parsed(report: str) -> Report | None:
    """Parse a report from JSON; None if this version can't read it."""
    try:
        return Report.model_validate_json(report)
    except ValidationError:
        return None


def verdict_of(row: AnalysisRow) -> Verdict | None:
    return None if row.verdict is None else Verdict.model_validate(row.verdict)


def _rendered(row: AnalysisRow, stored: ReportRow, kind: str, yardstick: Yardstick | None) -> bytes:
    report = parsed(stored.body)
    if report is None:
        raise NotAcceptableError("An older version produced the report; it is available only as application/json.")
    return _RENDERINGS[kind].render(report, verdict_of(row), yardstick).encode()


def described() -> dict[str, Any]:
    """Describe the media types besides JSON for OpenAPI."""
    return {kind: {"schema": {"type": "string"}} for kind in MEDIA_TYPES if kind != JSON}
