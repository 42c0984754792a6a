"""What a client does, call by call: each function is a flow that ``Client`` and ``AsyncClient`` run."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar
from urllib.parse import quote
from uuid import UUID, uuid4

from pydantic import BaseModel, ValidationError

from service.client.effects import STORE_SECONDS, Call, Event, Flow, ProgressSink, Reply, Send
from service.client.errors import ClientError
from service.client.files import File, Source, batch_file, model_file, name_of, state_file
from service.client.following import follow, handed_out
from service.client.older import is_about_unknown_fields, without_unknown_fields
from service.client.resources import Analysis, Baseline
from service.client.retries import UNLIMITED, Deadline, Session, request
from service.policies import Policy, Verdict, load_policy
from wsb_engine.errors import OptionsError
from wsb_engine.options import Options
from wsb_engine.report import Report

Rules: TypeAlias = Policy | Mapping[str, Any] | str | os.PathLike[str]
"""A policy, or the path of its file."""
Reference: TypeAlias = Report | Analysis | UUID | str
"""A report, or the analysis that has it."""
Named: TypeAlias = Analysis | UUID | str
"""An analysis, or its identifier."""

Resource = TypeVar("Resource", bound=BaseModel)

_PROGRESS_BYTES = 1 << 20
"""Shortest distance between two messages about the progress of an upload."""


@dataclass(frozen=True)
class Wanted:
    """An analysis to ask for: what ``Client.submit`` takes, in its order."""

    model: Source
    batch: Source
    options: Options | Mapping[str, Any] | None = None
    policy: Rules | None = None
    baseline: Reference | None = None
    name: str | None = None
    labels: Mapping[str, str] | None = None
    priority: int = 0
    timeout_s: float | None = None
    fresh: bool = False
    optimizer_state: Source | None = None

    def files(self) -> list[File]:
        """Describe the model, the batch and, if there is one, the optimizer's state."""
        states = [] if self.optimizer_state is None else [state_file(self.optimizer_state)]
        return [model_file(self.model), batch_file(self.batch), *states]

    def settings(self) -> dict[str, Any]:
        """Return the JSON of the request, without its files."""
        given = {
            "options": _document(self.options),
            "policy": None if self.policy is None else policy_document(self.policy),
            "baseline": None if self.baseline is None else reference(self.baseline),
            "name": self.name,
            "model_name": name_of(self.model),
            "batch_name": name_of(self.batch),
            "labels": dict(self.labels or {}) or None,
            "priority": self.priority or None,
            "timeout_s": self.timeout_s,
            "fresh": self.fresh or None,
        }
        return {name: value for name, value in given.items() if value is not None}


def submit(
    session: Session, wanted: Wanted, *, key: str | None, deadline: Deadline, progress: ProgressSink
) -> Flow[Analysis]:
    """Send the files that the server does not have, and ask for the analysis."""
    # The same for every attempt: one whose response was lost is not repeated by the server.
    headers = {"Idempotency-Key": key or uuid4().hex, "Content-Type": "application/json"}
    files = yield Call(wanted.files)
    settings = yield Call(wanted.settings)
    model, batch, *states = (file.identifier for file in files)
    names = {"model": model, "batch": batch}
    for state in states:
        settings = with_state(settings, state)
    yield from _send_missing(session, files, deadline, progress)
    was_lost = was_refused = False
    while True:
        body = json.dumps({**settings, **names}).encode()
        try:
            reply = yield from request(session, Send("POST", "/v1/analyses", headers, body), deadline, progress)
            return _parsed(Analysis, reply)
        except ClientError as error:
            if error.code == "blob_not_found" and not was_lost:  # deleted in between
                was_lost = True
                yield from _send_missing(session, files, deadline, progress)
            elif is_about_unknown_fields(error) and not was_refused:
                was_refused = True
                settings = yield from without_unknown_fields(session, settings, error, deadline)
            else:
                raise


def analyze(
    session: Session, wanted: Wanted, *, key: str | None, deadline: Deadline, progress: ProgressSink
) -> Flow[Report]:
    """Ask for an analysis, wait until it has ended, and return its report."""
    analysis = yield from submit(session, wanted, key=key, deadline=deadline, progress=progress)
    ended = yield from wait(session, analysis, deadline, progress)
    return (yield from report(session, ended, deadline))


def wait(session: Session, analysis: Named, deadline: Deadline, progress: ProgressSink) -> Flow[Analysis]:
    """Wait until an analysis has ended."""

    def told(event: Event) -> Flow[None]:
        found = event.data if event.name == "progress" else event.data.get("progress")
        if found:
            progress(found)
        yield from ()

    yield from follow(session, identifier(analysis), None, deadline, told)
    return (yield from get(session, analysis, deadline))


def events(session: Session, analysis: Named, last_event_id: str | None, deadline: Deadline) -> Flow[None]:
    """Give the caller the events of an analysis until it has ended."""
    return follow(session, identifier(analysis), last_event_id, deadline, handed_out)


def get(session: Session, analysis: Named, deadline: Deadline = UNLIMITED) -> Flow[Analysis]:
    send = Send("GET", f"/v1/analyses/{identifier(analysis)}")
    return _parsed(Analysis, (yield from request(session, send, deadline)))


def cancel(session: Session, analysis: Named) -> Flow[Analysis]:
    send = Send("POST", f"/v1/analyses/{identifier(analysis)}/cancel")
    return _parsed(Analysis, (yield from request(session, send, UNLIMITED)))


def report(session: Session, analysis: Named, deadline: Deadline = UNLIMITED) -> Flow[Report]:
    """Fetch a report; of an analysis that has ended without one, raise its error."""
    if isinstance(analysis, Analysis) and analysis.has_ended and analysis.state != "succeeded":
        raise without_report(analysis)
    path, headers = f"/v1/analyses/{identifier(analysis)}/report", {"Accept": "application/json"}
    reply = yield from request(session, Send("GET", path, headers), deadline)
    return _parsed(Report, reply)


def compare(
    session: Session, candidate: Reference, baseline: Reference | None, policy: Rules, learning_rate: float | None
) -> Flow[Verdict]:
    rules = yield Call(lambda: policy_document(policy))
    given = {
        "candidate": reference(candidate),
        "baseline": None if baseline is None else reference(baseline),
        "policy": rules,
        "learning_rate": learning_rate,
    }
    body = json.dumps({name: value for name, value in given.items() if value is not None}).encode()
    headers = {"Content-Type": "application/json"}
    reply = yield from request(session, Send("POST", "/v1/comparisons", headers, body), UNLIMITED)
    return Verdict.model_validate(reply.json()["verdict"])


def baseline(session: Session, name: str) -> Flow[Baseline]:
    send = Send("GET", f"/v1/baselines/{quote(name, safe='')}")
    return _parsed(Baseline, (yield from request(session, send, UNLIMITED)))


def promote(session: Session, name: str, analysis: Named, allow_older: bool) -> Flow[Baseline]:
    body = json.dumps({"analysis": identifier(analysis), "allow_older": allow_older}).encode()
    send = Send("PUT", f"/v1/baselines/{quote(name, safe='')}", {"Content-Type": "application/json"}, body)
    return _parsed(Baseline, (yield from request(session, send, UNLIMITED)))


def with_state(settings: Mapping[str, Any], state: str) -> dict[str, Any]:
    """Return a request whose optimizer has this state.

    Raises:
        OptionsError: ``optimizer_state_unused`` if it has no optimizer.
    """
    optimizer = settings["options"].get("optimizer")
    if not isinstance(optimizer, Mapping):
        raise OptionsError(
            "a state was given, but no optimizer is",
            code="optimizer_state_unused",
            advice="Leave the state out, or set the option optimizer to the kind that it belongs to.",
        )
    return {**settings, "options": {**settings["options"], "optimizer": {**optimizer, "state": state}}}


def identifier(analysis: Named) -> str:
    """Return the identifier of an analysis."""
    return str(analysis.id if isinstance(analysis, Analysis) else analysis)


def reference(given: Reference) -> Any:
    """Return a report, or the identifier of its analysis, as requests have it."""
    return given.model_dump(mode="json") if isinstance(given, Report) else identifier(given)


def policy_document(policy: Rules) -> dict[str, Any]:
    """Return a policy as JSON.

    Raises:
        PolicyError: if its file is not valid.
        OSError: if the file can't be read.
    """
    if isinstance(policy, str | os.PathLike):
        policy = load_policy(Path(policy))
    return _document(policy)


def without_report(ended: Analysis) -> ClientError:
    """Return the error of an analysis that ended without a report."""
    error, state = ended.error, ended.state
    return ClientError(
        f"The analysis has {state.replace('_', ' ')}." if error is None else error.message,
        code=state if error is None else error.code,
        advice="" if error is None else error.advice,
        analysis=str(ended.id),
        state=state,
        details={} if error is None else error.details,
    )


def _document(given: BaseModel | Mapping[str, Any] | None) -> dict[str, Any]:
    if isinstance(given, BaseModel):
        return given.model_dump(mode="json")
    return dict(given or {})


def _send_missing(session: Session, files: Sequence[File], deadline: Deadline, progress: ProgressSink) -> Flow[None]:
    """Send the files that the server does not have."""
    missing = []
    for file in files:
        if file.content is not None and not (yield from _has(session, file, deadline)):
            missing.append(file)
    sent = _Sent(progress, sum(file.size for file in missing))
    for file in missing:
        yield from _upload(session, file, deadline, sent)


def _has(session: Session, file: File, deadline: Deadline) -> Flow[bool]:
    """Ask whether the server has the file; not by HEAD, whose errors say nothing."""
    try:
        yield from request(session, Send("GET", f"/v1/{file.kind}/{file.identifier}"), deadline)
    except ClientError as error:
        if error.status != 404:
            raise
        return False
    return True


def _upload(session: Session, file: File, deadline: Deadline, sent: _Sent) -> Flow[None]:
    send = Send("POST", f"/v1/{file.kind}", file=file, progress=sent.add, seconds=STORE_SECONDS)
    reply = yield from request(session, send, deadline)
    if reply.json()["id"] != file.identifier:
        raise ClientError(
            "A file has changed while it was being sent.", code="file_changed", advice="Send it when it is complete."
        )


class _Sent:
    """Reports how much of an upload has been sent.

    Args:
        progress: Called from time to time.
        total: Bytes of all files.
    """

    def __init__(self, progress: ProgressSink, total: int) -> None:
        self._progress = progress
        self._total = total
        self._sent = self._reported = 0

    def add(self, size: int) -> None:
        self._sent += size
        if self._sent >= self._reported + _PROGRESS_BYTES:
            self._reported = self._sent
            # More than all is sent if a request is repeated.
            self._progress({"phase": "upload", "fraction": min(1.0, self._sent / self._total)})


def _parsed(schema: type[Resource], reply: Reply) -> Resource:
    try:
        return schema.model_validate_json(reply.body)
    except ValidationError as error:
        text = f"The server's answer can't be read: {error.errors()[0]['msg']}"
        raise ClientError(text, code="unreadable_response", status=reply.status) from error
