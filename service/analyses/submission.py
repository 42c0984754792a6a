"""From a request's body to a queued analysis."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TypeVar
from uuid import UUID

from fastapi import Request
from pydantic import BaseModel, ValidationError
from sqlalchemy.ext.asyncio import AsyncSession

from service import queue, workers
from service.analyses import repository
from service.analyses.errors import DeviceUnavailableError, QueueFullError
from service.analyses.schemas import AnalysisRequest, AnalysisSettings, FormRequest
from service.analyses.table import AnalysisRow
from service.batches.formats import batch_format
from service.blobs import NOUNS, hold, register, sniff
from service.context import Context
from service.errors import (
    FieldError,
    InvalidRequestError,
    MalformedRequestError,
    UnsupportedMediaTypeError,
    field_errors,
)
from service.models.formats import model_format
from service.multipart import InvalidFormError, LimitedWriter, Writer, read_form
from service.storage import Kind, Upload
from service.uploads import read

Wanted = TypeVar("Wanted", bound=BaseModel)

_READERS = {"models": model_format, "batches": batch_format}
_PARTS: dict[str, Kind] = {"model": "models", "batch": "batches"}


async def submit(request: Request, context: Context) -> UUID:
    """Stores what the request brings and queues the analysis; the identifier of the analysis.

    Raises:
        ServiceError: for every kind of bad request; nothing of it is kept.
    """
    media_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if media_type == "multipart/form-data":
        return await _submit_form(request, context)
    if media_type == "application/json":
        wanted = _parse(AnalysisRequest, await read(request, context.settings.max_request_bytes))
        async with context.database.transaction() as session:
            model = await hold(session, "models", wanted.model)
            batch = await hold(session, "batches", wanted.batch)
            return await _queue(session, context, wanted, model, batch)
    raise UnsupportedMediaTypeError(
        f"The body is of type {media_type[:80]!r}.", advice="Send application/json or multipart/form-data."
    )


async def _submit_form(request: Request, context: Context) -> UUID:
    with ExitStack() as stack:
        form = _Form(context, stack)
        await read_form(request, form.limit, form.open)
        wanted = form.settings()
        formats = {name: await sniff(upload, _READERS[upload.kind]) for name, upload in form.uploads.items()}
        async with context.database.transaction() as session:
            digests = {}
            # Always the model first: two requests that lock the same two names must not wait for each other.
            for name, kind in _PARTS.items():
                if name in form.uploads:
                    row, _ = await register(session, context, form.uploads[name], formats[name])
                    digests[name] = row.sha256
                else:
                    digests[name] = await hold(session, kind, getattr(wanted, name))
            return await _queue(session, context, wanted, digests["model"], digests["batch"])


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
        wanted = _parse(FormRequest, bytes(self._request.content) or b"{}")
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


def _parse(schema: type[Wanted], content: bytes) -> Wanted:
    try:
        return schema.model_validate_json(content)
    except ValidationError as error:
        if error.errors()[0]["type"] == "json_invalid":
            raise MalformedRequestError(f"The request is no JSON: {error.errors()[0]['msg']}") from error
        raise InvalidRequestError("The request has invalid values.", errors=field_errors(error)) from error


async def _queue(session: AsyncSession, context: Context, wanted: AnalysisSettings, model: str, batch: str) -> UUID:
    settings = context.settings
    timeout = settings.job_seconds if wanted.timeout_s is None else wanted.timeout_s
    if timeout > settings.job_seconds:
        error = FieldError(pointer="/timeout_s", detail=f"The service's limit is {settings.job_seconds:g} seconds.")
        raise InvalidRequestError("The time limit is above the service's own.", errors=[error])
    await _check_device(session, context, wanted.options.device)
    if await repository.count_queued(session) >= settings.max_queue:
        raise QueueFullError(
            f"{settings.max_queue} analyses are waiting already.",
            advice="Try again later.",
            headers={"Retry-After": "5"},
        )
    row = AnalysisRow(
        model=model,
        batch=batch,
        options=wanted.options.model_dump(mode="json"),
        labels=wanted.labels,
        priority=wanted.priority,
        timeout_s=timeout,
        state="queued",
    )
    session.add(row)
    await session.flush()
    row.job_id = await queue.defer(
        session, context.queue, row.id, device=wanted.options.device, priority=wanted.priority
    )
    await session.flush()
    return row.id


async def _check_device(session: AsyncSession, context: Context, device: str) -> None:
    if device == "auto":
        return
    present = await workers.alive(session, within_seconds=context.settings.stalled_seconds)
    # Without any worker nobody knows what there will be; the analysis waits.
    if present and not any(workers.offers(worker, device) for worker in present):
        offered = sorted({worker.device for worker in present})
        raise DeviceUnavailableError(
            f"No worker offers {device}.",
            advice=f"Ask for one of {', '.join(offered)}, or for auto.",
            details={"devices": offered},
        )
