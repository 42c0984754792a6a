"""Following an analysis: by server-sent events, resumed where they broke off, or by polling where there are none."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field

from service.client.effects import SECONDS, Effect, Event, Flow, LostError, Open, ReadLine, Send, Sleep
from service.client.retries import Deadline, Session, delay, opened, request

Emit = Callable[[Event], Flow[None]]
"""What to do with an event."""

MEDIA_TYPE = "text/event-stream"
_VAIN_STREAMS = 2
"""Streams in a row without any event after which the client polls."""
_POLL_SECONDS, _LONGEST_POLL_SECONDS = 0.5, 5.0


def follow(session: Session, analysis: str, last: str | None, deadline: Deadline, emit: Emit) -> Flow[None]:
    """Emit the events of an analysis until it has ended.

    Args:
        session: What requests share.
        analysis: Identifier of the analysis.
        last: Identifier of the last event that is known.
        deadline: When to give up.
        emit: What to do with an event.

    Raises:
        ClientError: if the analysis does not exist, the server stays away, or the time is up.
    """
    position, vain = _Position(last), 0
    while vain < _VAIN_STREAMS:
        deadline.check(analysis)
        known = position.last
        if (yield from _stream(session, analysis, position, deadline, emit)):
            return
        vain = vain + 1 if position.last == known else 0
        yield Sleep(min(delay(vain + 1), max(deadline.left, 0)))
    yield from _poll(session, analysis, deadline, emit)


@dataclass
class _Position:
    last: str | None


def _stream(session: Session, analysis: str, position: _Position, deadline: Deadline, emit: Emit) -> Flow[bool]:
    """Emit the events of one connection; return whether the analysis has ended."""
    headers = {"Accept": MEDIA_TYPE} | ({} if position.last is None else {"Last-Event-ID": position.last})
    silence = max(min(SECONDS, deadline.left), 0.1)
    reply = yield from opened(session, Open(f"/v1/analyses/{analysis}/events", headers, silence))
    # A proxy may not let a stream through.
    if reply is None or reply.status != 200 or not reply.headers.get("content-type", "").startswith(MEDIA_TYPE):
        return False
    decoder = Decoder()
    while True:
        deadline.check(analysis)
        try:
            line: str | None = yield ReadLine()
        except LostError:
            return False
        if line is None:
            return False
        event = decoder.feed(line)
        if event is not None:
            position.last = event.id or position.last
            yield from emit(event)
            if event.name == "end":
                return True


@dataclass
class Decoder:
    """Decodes the lines of a stream (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

    _fields: dict[str, list[str]] = field(default_factory=dict)

    def feed(self, line: str) -> Event | None:
        """Take a line without its end; return an event if the line completes one."""
        if line:
            name, _, value = line.partition(":")
            if name in ("event", "data", "id"):  # a comment has no name
                self._fields.setdefault(name, []).append(value.removeprefix(" "))
            return None
        found, self._fields = self._fields, {}
        if "data" not in found:
            return None
        data = json.loads("\n".join(found["data"]))
        return Event(found.get("event", ["message"])[-1], data, found.get("id", [""])[-1])


def _poll(session: Session, analysis: str, deadline: Deadline, emit: Emit) -> Flow[None]:
    """Emit a ``state`` for each change that a poll sees, and the ``end``."""
    etag, pause = "", _POLL_SECONDS
    while True:
        deadline.check(analysis)
        headers = {"If-None-Match": etag} if etag else {}
        reply = yield from request(session, Send("GET", f"/v1/analyses/{analysis}", headers), deadline)
        if reply.status != 304:
            etag, pause = reply.headers.get("etag", ""), _POLL_SECONDS
            found = reply.json()
            revision = etag.strip('"').partition("-")[0]
            yield from emit(Event("state", found, revision))
            if found["finished_at"] is not None:
                yield from emit(Event("end", {"state": found["state"]}, revision))
                return
        yield Sleep(min(pause, max(deadline.left, 0)))
        pause = min(1.5 * pause, _LONGEST_POLL_SECONDS)


def handed_out(event: Event) -> Flow[None]:
    """Give the event to the caller of ``events``."""
    effect: Effect = event
    yield effect
