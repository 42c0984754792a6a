"""From a request's body to a queued analysis."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from fastapi import Request
from sqlalchemy.ext.asyncio import AsyncSession

from service.analyses import idempotency, repository
from service.analyses.baselines.references import resolve
from service.analyses.errors import (
    BaselineDecidedError,
    DeviceUnavailableError,
    PolicyMissingError,
    QueueFullError,
    TenantQueueFullError,
)
from service.analyses.reuse import find_report, fingerprint
from service.analyses.schemas import AnalysisRequest, AnalysisSettings, FormRequest
from service.analyses.table import AnalysisRow
from service.blobs.parts import FILES, KINDS, STATE, Parts, missing_part
from service.blobs.repository import Received, digest, hold, identifier, register, sniff
from service.context import Context
from service.database import queue, workers
from service.database.engine import lock
from service.errors import InvalidRequestError, ServiceError, UnsupportedMediaTypeError
from service.fields import FieldError
from service.http.bodies import read
from service.http.documents import parse
from service.http.headers import media_type
from service.http.multipart import InvalidFormError
from service.kit import audit
from service.kit.devices import kind_of, owned
from service.policies import terms
from service.policies.evaluation import BASELINE_DECIDED, PRODUCE_AGAIN
from wsb_engine.report import Report

NAMES = ("name", "model_name", "batch_name")
"""Fields of a request that change nothing in the report."""


@dataclass(frozen=True)
class Submission:
    """The outcome of a request for an analysis."""

    analysis: UUID
    replayed: bool = False
    """True if it is the analysis of an earlier request with the same Idempotency-Key."""


@dataclass(frozen=True)
class Caller:
    """Who submits."""

    tenant: str
    idempotency_key: str | None = None


async def submit(request: Request, context: Context, caller: Caller) -> Submission:
    """Receive a request for an analysis, then store and queue it as ``accept`` does.

    Raises:
        ServiceError: if the request is invalid; nothing of it is kept.
    """
    kind, limit = media_type(request.headers), context.settings.max_request_bytes
    if kind == "multipart/form-data":
        with Parts(
            context, {"request": limit}, advice="Send parts model, model_data, batch, optimizer_state and request."
        ) as parts:
            await parts.receive(request)
            wanted, files = parse(FormRequest, parts.field("request") or b"{}"), parts.received()
            _check_files(wanted, files)
            if STATE in files:
                wanted = with_state(wanted, identifier(files[STATE].sha256))
            return await accept(context, caller, wanted, files)
    if kind == "application/json":
        return await accept(context, caller, parse(AnalysisRequest, await read(request, limit)), {})
    raise UnsupportedMediaTypeError(
        f"The body is of type {kind[:80]!r}.", advice="Send application/json or multipart/form-data."
    )


def _check_files(wanted: FormRequest, files: Mapping[str, Received]) -> None:
    """Raise InvalidFormError unless each file is either sent or named."""
    for name in FILES:
        named, sent = getattr(wanted, name) is not None, name in files
        if not (named or sent):
            raise missing_part(name)
        if named and sent:
            raise InvalidFormError(
                f"The {name} is both a part and named in the request part.",
                code="duplicate_part",
                advice="Give only one of them.",
            )


def with_state(wanted: FormRequest, state: str) -> FormRequest:
    """Return the request with the identifier of the optimizer's state that was sent with it.

    Raises:
        InvalidRequestError: if there is no optimizer that takes one, or the request names another one.
    """
    optimizer = wanted.options.optimizer
    if optimizer is None or not optimizer.needs_state:
        error = FieldError(pointer="/options/optimizer", detail="It needs no state, and one was sent.")
        advice = "Leave the part out, or set the option optimizer to the kind that the state belongs to."
        raise InvalidRequestError("The part 'optimizer_state' is of no use.", advice=advice, errors=[error])
    if optimizer.state not in (None, state):
        error = FieldError(pointer="/options/optimizer/state", detail=f"The state that was sent is {state}.")
        raise InvalidRequestError("The request names another state than was sent.", errors=[error])
    optimizer = optimizer.model_copy(update={"state": state})
    options = wanted.options.model_copy(update={"optimizer": optimizer})
    return wanted.model_copy(update={"options": options})


def _state(wanted: AnalysisSettings) -> str | None:
    """Return the identifier of the optimizer's state, if the analysis needs one.

    Raises:
        InvalidRequestError: if it is missing.
    """
    optimizer = wanted.options.optimizer
    if optimizer is None or not optimizer.needs_state:
        return None
    if optimizer.state is None:
        advice = "Send a part optimizer_state, or POST /v1/optimizer_states and name it here."
        error = FieldError(pointer="/options/optimizer/state", detail=f"{optimizer.kind} needs its state. {advice}")
        raise InvalidRequestError("The state of the optimizer is missing.", advice=advice, errors=[error])
    return optimizer.state


async def accept(
    context: Context, caller: Caller, wanted: AnalysisRequest | FormRequest, files: Mapping[str, Received]
) -> Submission:
    """Store the files and queue the analysis, or find the existing one.

    Args:
        context: Context of the request.
        caller: Who submits.
        wanted: The settings, and the identifier of each file that is not in ``files``.
        files: What has arrived, by the names ``model``, ``batch`` and ``optimizer_state``.

    Raises:
        ServiceError: if the request is invalid; nothing of it is kept.
    """
    _check_policy(wanted)
    formats = await _formats(files)
    inputs = {
        name: files[name].sha256 if name in files else digest(getattr(wanted, name), kind)
        for name, kind in FILES.items()
    }
    state = _state(wanted)
    if state is not None:
        inputs[STATE] = digest(state, KINDS[STATE])
    key = caller.idempotency_key
    # Fields that are not given do not count, so that a request keeps its fingerprint when there are new ones.
    unnamed = {field for field in NAMES if getattr(wanted, field) is None}
    request = fingerprint(**inputs, settings=wanted.model_dump(mode="json", exclude={*FILES, *unnamed}))
    names = {f"{name}_name": file.name for name, file in files.items() if name in FILES}
    # Locks are always taken in the same order, so that no two requests deadlock: the key, the model, the batch, the
    # state, the queue.
    async with context.database.transaction() as session:
        if key is not None:
            known = await idempotency.replayed(session, caller.tenant, key, request)
            if known is not None:
                return Submission(known, replayed=True)
        for name in inputs:
            if name in files:
                await register(session, context, caller.tenant, files[name], formats[name])
            else:
                await hold(session, caller.tenant, KINDS[name], identifier(inputs[name]))
        analysis = await _analysis(session, context, caller.tenant, wanted, inputs, names)
        if key is not None:
            idempotency.remember(session, caller.tenant, key, request, analysis)
    stored = [identifier(inputs[name]) for name in files]
    audit.note(resource=f"/v1/analyses/{analysis}", analysis=str(analysis), **({"files": stored} if stored else {}))
    return Submission(analysis)


def _check_policy(wanted: AnalysisSettings) -> None:
    """Raise PolicyMissingError if the analysis is to stop when a policy is decided, and there is none."""
    if wanted.options.stop == "decided" and wanted.policy is None:
        advice = "Add a policy, or set stop to gap."
        error = FieldError(pointer="/options/stop", detail=f"There is no policy to decide. {advice}")
        raise PolicyMissingError(
            "The option stop is decided, and there is no policy to decide.", advice=advice, errors=[error]
        )


async def _formats(files: Mapping[str, Received]) -> dict[str, str]:
    """Detect the formats concurrently, by name of file; no file is being read once this returns or raises."""
    formats: dict[str, str] = {}
    results = await asyncio.gather(*map(sniff, files.values()), return_exceptions=True)
    for name, found in zip(files, results, strict=True):
        if isinstance(found, BaseException):
            raise found
        formats[name] = found
    return formats


async def _analysis(
    session: AsyncSession,
    context: Context,
    tenant: str,
    wanted: AnalysisSettings,
    inputs: Mapping[str, str],
    names: Mapping[str, str | None],
) -> UUID:
    """Create an analysis: queue it, or give it the report of an equal one."""
    baseline = await _baseline(session, tenant, wanted)
    row = AnalysisRow(
        tenant=tenant,
        model=inputs["model"],
        batch=inputs["batch"],
        optimizer_state=inputs.get(STATE),
        options=wanted.options.model_dump(mode="json"),
        labels=wanted.labels,
        name=wanted.name,
        model_name=wanted.model_name or names.get("model_name"),
        batch_name=wanted.batch_name or names.get("batch_name"),
        priority=wanted.priority,
        timeout_s=_timeout(context, wanted),
        state="queued",
        policy=None if wanted.policy is None else wanted.policy.model_dump(mode="json"),
        baseline=None if baseline is None else baseline.model_dump(mode="json"),
    )
    # What the policy changes in the report makes it another one.
    row.fingerprint = fingerprint(**inputs, options=row.options, **terms(wanted.policy, baseline, wanted.options))
    devices = await _devices(session, context, row.options)
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


async def _baseline(session: AsyncSession, tenant: str, wanted: AnalysisSettings) -> Report | None:
    """Read the baseline's report now, so that the verdict does not depend on how long its analysis is kept.

    Raises:
        BaselineDecidedError: if a rule must not compare with it.
    """
    if wanted.baseline is None:
        return None
    report, _ = await resolve(session, tenant, wanted.baseline)
    if wanted.policy is not None and wanted.policy.refuses(report):
        error = FieldError(pointer="/baseline", detail=f"{BASELINE_DECIDED} {PRODUCE_AGAIN}")
        raise BaselineDecidedError(BASELINE_DECIDED, advice=PRODUCE_AGAIN, errors=[error])
    return report


def _timeout(context: Context, wanted: AnalysisSettings) -> float:
    limit = context.settings.job_seconds
    timeout = limit if wanted.timeout_s is None else wanted.timeout_s
    if timeout > limit:
        error = FieldError(pointer="/timeout_s", detail=f"The service's limit is {limit:g} seconds.")
        raise InvalidRequestError("The time limit exceeds the service's.", errors=[error])
    return timeout


async def _queue(session: AsyncSession, context: Context, row: AnalysisRow) -> None:
    await _check_room(session, context, row.tenant)
    # Held until the transaction ends, so that the next request counts this analysis too. The tenant's own comes first:
    # of all its requests, one at a time competes with those of others.
    await lock(session, f"queue {row.tenant}")
    await lock(session, "queue")
    await _check_room(session, context, row.tenant)
    session.add(row)
    await session.flush()
    device = queue.wanted_device(row.options)
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
            text = f"The limit on queued {what}, {limit}, is reached."
            raise kind(text, advice="Try again later.", headers={"Retry-After": "5"})


async def _devices(session: AsyncSession, context: Context, options: Mapping[str, Any]) -> set[str]:
    """Return the kinds of devices whose reports may answer these options, after checking that a worker takes them."""
    present = await workers.alive(session, within_seconds=context.settings.stalled_seconds)
    # Without any worker, nothing is known about future ones: the analysis waits.
    if present and not any(workers.offers(worker, options) for worker in present):
        offered = sorted({worker.device for worker in present})
        several = options["devices"]
        wanted = options["device"] if several is None else several if several == "all" else "+".join(several)
        raise DeviceUnavailableError(
            f"No worker offers {wanted}.",
            advice=f"Request one of {', '.join(offered)}, or auto."
            + (" Several devices need a worker that owns them (wsb worker --devices)." if several is not None else ""),
            details={"devices": offered},
        )
    kinds = {kind_of(device) for worker in present for device in owned(worker.device)}
    # Some analyses of workers with a GPU are done sooner on the CPU.
    return kinds | {"cpu"} if kinds and options["device"] == "auto" else kinds
