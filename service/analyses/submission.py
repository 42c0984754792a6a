"""From a request's body to a queued analysis."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import UUID

from fastapi import Request
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json, to_json
from sqlalchemy.ext.asyncio import AsyncSession

from service.analyses import idempotency, repository
from service.analyses.errors import DeviceUnavailableError, QueueFullError, TenantQueueFullError
from service.analyses.references import resolve
from service.analyses.reuse import find_report, fingerprint
from service.analyses.schemas import AnalysisRequest, AnalysisSettings, FormRequest
from service.analyses.table import AnalysisRow
from service.blobs.formats import batch_format, model_format
from service.blobs.repository import NOUNS, digest, hold, identifier, register, sniff
from service.context import Context
from service.database import queue, workers
from service.database.engine import lock
from service.errors import (
    InvalidRequestError,
    MalformedRequestError,
    ServiceError,
    UnsupportedMediaTypeError,
)
from service.fields import FieldError, field_errors
from service.http.bodies import read
from service.http.multipart import InvalidFormError, LimitedWriter, Writer, read_form
from service.storage.store import Kind, Upload

Wanted = TypeVar("Wanted", bound=BaseModel)

_EXACT = 2**53
_READERS = {"models": model_format, "batches": batch_format}
_PARTS: dict[str, Kind] = {"model": "models", "batch": "batches"}


@dataclass(frozen=True)
class Submission:
    """What became of a request."""

    analysis: UUID
    replayed: bool = False
    """The analysis is that of an earlier request with the same Idempotency-Key."""


@dataclass(frozen=True)
class Caller:
    """Who submits."""

    tenant: str
    idempotency_key: str | None = None


async def submit(request: Request, context: Context, caller: Caller) -> Submission:
    """Stores what the request brings and queues the analysis, or finds that it has been made already.

    Raises:
        ServiceError: for every kind of bad request; nothing of it is kept.
    """
    media_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if media_type == "multipart/form-data":
        with ExitStack() as stack:
            form = _Form(context, stack)
            await read_form(request, form.limit, form.open)
            return await accept(context, caller, form.settings(), form.uploads)
    if media_type == "application/json":
        wanted = parse(AnalysisRequest, await read(request, context.settings.max_request_bytes))
        return await accept(context, caller, wanted, {})
    raise UnsupportedMediaTypeError(
        f"The body is of type {media_type[:80]!r}.", advice="Send application/json or multipart/form-data."
    )


async def accept(
    context: Context, caller: Caller, wanted: AnalysisRequest | FormRequest, uploads: Mapping[str, Upload]
) -> Submission:
    """Stores the files and queues the analysis, or finds that it has been made already.

    Args:
        context, caller: Of the request.
        wanted: What is asked for; it names what is not in ``uploads``.
        uploads: Complete files by the names ``model`` and ``batch``.

    Raises:
        ServiceError: for every kind of bad request; nothing of it is kept.
    """
    formats = await _formats(uploads)
    inputs = {
        name: uploads[name].sha256 if name in uploads else digest(getattr(wanted, name), kind)
        for name, kind in _PARTS.items()
    }
    key = caller.idempotency_key
    request = fingerprint(**inputs, settings=wanted.model_dump(mode="json", exclude=set(_PARTS)))
    # Locks are taken in one order, so that no two requests wait for each other: the key, the model, the batch, the
    # queue.
    async with context.database.transaction() as session:
        if key is not None:
            known = await idempotency.replayed(session, caller.tenant, key, request)
            if known is not None:
                return Submission(known, replayed=True)
        for name, kind in _PARTS.items():
            if name in uploads:
                await register(session, context, caller.tenant, uploads[name], formats[name])
            else:
                await hold(session, caller.tenant, kind, identifier(inputs[name]))
        analysis = await _analysis(session, context, caller.tenant, wanted, inputs)
        if key is not None:
            idempotency.remember(session, caller.tenant, key, request, analysis)
    return Submission(analysis)


async def _formats(uploads: Mapping[str, Upload]) -> dict[str, str]:
    """By the names of the uploads, read side by side; none is being read any more when this returns or raises."""
    reading = (sniff(upload, _READERS[upload.kind]) for upload in uploads.values())
    formats: dict[str, str] = {}
    for name, found in zip(uploads, await asyncio.gather(*reading, return_exceptions=True), strict=True):
        if isinstance(found, BaseException):
            raise found
        formats[name] = found
    return formats


class _InMemory:
    def __init__(self) -> None:
        self.content = bytearray()

    def write(self, data: bytes) -> None:
        self.content += data


class _Form:
    """The parts of a multipart request as they come in."""

    def __init__(self, context: Context, stack: ExitStack) -> None:
        settings = context.settings
        self.uploads: dict[str, Upload] = {}
        self._context = context
        self._stack = stack
        self._request = _InMemory()
        self._limits = {
            "model": settings.max_model_bytes,
            "batch": settings.max_batch_bytes,
            "request": settings.max_request_bytes,
        }
        self.limit = sum(self._limits.values())

    def open(self, name: str) -> Writer:
        if name == "request":
            return LimitedWriter(self._request, self._limits[name], "request part")
        if name in _PARTS:
            self.uploads[name] = self._stack.enter_context(self._context.blobs.receive(_PARTS[name]))
            return LimitedWriter(self.uploads[name], self._limits[name], NOUNS[_PARTS[name]])
        raise InvalidFormError(
            f"There is a part {name[:80]!r}.", code="unexpected_part", advice="Send parts model, batch and request."
        )

    def settings(self) -> FormRequest:
        wanted = parse(FormRequest, bytes(self._request.content) or b"{}")
        for name in _PARTS:
            named, sent = getattr(wanted, name) is not None, name in self.uploads
            if not (named or sent):
                raise InvalidFormError(
                    f"There is no part {name!r}.",
                    code="missing_part",
                    advice=f"Send the file: curl -F {name}=@FILE.",
                )
            if named and sent:
                raise InvalidFormError(
                    f"The {name} is both a part and named in the request part.",
                    code="duplicate_part",
                    advice="Give one of them.",
                )
        return wanted


def parse(schema: type[Wanted], content: bytes) -> Wanted:
    """The request in a JSON body.

    Raises:
        MalformedRequestError, InvalidRequestError: what is wrong with it.
    """
    try:
        # In JSON 3 and 3.0 are the same number, which strict validation does not know.
        content = to_json(_whole(from_json(content)))
    except ValueError as error:
        raise MalformedRequestError(f"The request is no JSON: {error}") from error
    try:
        return schema.model_validate_json(content, strict=True)
    except ValidationError as error:
        raise InvalidRequestError("The request has invalid values.", errors=field_errors(error)) from error


def _whole(value: Any) -> Any:
    """The same JSON value with whole numbers as integers, as far as floats hold them exactly."""
    if isinstance(value, float) and value.is_integer() and abs(value) <= _EXACT:
        return int(value)
    if isinstance(value, list):
        return [_whole(item) for item in value]
    if isinstance(value, dict):
        return {name: _whole(item) for name, item in value.items()}
    return value


async def _analysis(
    session: AsyncSession, context: Context, tenant: str, wanted: AnalysisSettings, inputs: dict[str, str]
) -> UUID:
    """A new analysis: queued, or with the report of an equal one."""
    row = AnalysisRow(
        tenant=tenant,
        model=inputs["model"],
        batch=inputs["batch"],
        options=wanted.options.model_dump(mode="json"),
        labels=wanted.labels,
        priority=wanted.priority,
        timeout_s=_timeout(context, wanted),
        state="queued",
        policy=None if wanted.policy is None else wanted.policy.model_dump(mode="json"),
        baseline=await _baseline(session, tenant, wanted),
    )
    row.fingerprint = fingerprint(**inputs, options=row.options)
    devices = await _devices(session, context, wanted.options.device)
    found = None if wanted.fresh else await find_report(session, tenant, row.fingerprint, devices)
    if found is None:
        await _queue(session, context, row)
        return row.id
    original, report = found
    row.reused_from = original.reused_from or original.id
    session.add(row)
    await session.flush()
    await repository.succeed(session, row.id, report)
    return row.id


async def _baseline(session: AsyncSession, tenant: str, wanted: AnalysisSettings) -> dict[str, Any] | None:
    """The baseline as it is now: the verdict does not depend on how long its analysis is kept."""
    if wanted.baseline is None:
        return None
    report, _ = await resolve(session, tenant, wanted.baseline)
    return report.model_dump(mode="json")


def _timeout(context: Context, wanted: AnalysisSettings) -> float:
    limit = context.settings.job_seconds
    timeout = limit if wanted.timeout_s is None else wanted.timeout_s
    if timeout > limit:
        error = FieldError(pointer="/timeout_s", detail=f"The service's limit is {limit:g} seconds.")
        raise InvalidRequestError("The time limit is above the service's own.", errors=[error])
    return timeout


async def _queue(session: AsyncSession, context: Context, row: AnalysisRow) -> None:
    # Held until the transaction ends: whoever counts next counts this analysis too.
    await lock(session, "queue")
    await _check_room(session, context, row.tenant)
    session.add(row)
    await session.flush()
    device = row.options["device"]
    row.job_id = await queue.defer(session, context.queue, row.id, device=device, priority=row.priority)
    await session.flush()


async def _check_room(session: AsyncSession, context: Context, tenant: str) -> None:
    settings = context.settings
    every, own = await repository.count_queued(session, tenant)
    limits: list[tuple[type[ServiceError], int, int, str]] = [
        (TenantQueueFullError, own, settings.max_queue_per_tenant, "analyses of this API key"),
        (QueueFullError, every, settings.max_queue, "analyses"),
    ]
    for kind, waiting, limit, what in limits:
        if waiting >= limit:
            text = f"{limit} {what} are waiting already."
            raise kind(text, advice="Try again later.", headers={"Retry-After": "5"})


async def _devices(session: AsyncSession, context: Context, device: str) -> set[str]:
    """Devices that workers offer, after a check that ``device`` is one of them."""
    present = await workers.alive(session, within_seconds=context.settings.stalled_seconds)
    # Without any worker nobody knows what there will be; the analysis waits.
    if device != "auto" and present and not any(workers.offers(worker, device) for worker in present):
        offered = sorted({worker.device for worker in present})
        raise DeviceUnavailableError(
            f"No worker offers {device}.",
            advice=f"Ask for one of {', '.join(offered)}, or for auto.",
            details={"devices": offered},
        )
    return {worker.device for worker in present}
