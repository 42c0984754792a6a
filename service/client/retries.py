"""Requests that are repeated: while the server is busy or away, and only within a deadline."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from service.client.effects import Flow, LostError, Open, ProgressSink, Reply, Send, Sleep, ignore
from service.client.errors import DEADLINE, UNREACHABLE, ClientError, problem

BUSY = 429
AGAIN = frozenset({BUSY, 502, 503, 504})
"""Statuses of a service, or of a proxy before it, that is busy or away."""
_FIRST_DELAY, _LONGEST_DELAY = 0.5, 20.0
_LEAST_SECONDS = 0.1
"""Time for a request, however little is left of the call's."""


@dataclass
class Session:
    """What the requests of one client share.

    Args:
        url: Address of the server.
        retry_seconds: How long a request is repeated while the server is away.
        busy_seconds: How long it is repeated while the server has too much to do (429).
        headers: Headers of every request.
    """

    url: str
    retry_seconds: float
    busy_seconds: float
    headers: Mapping[str, str]
    answered: bool = False
    """True once the server has answered: before, an address that does not answer is taken to be wrong."""


@dataclass
class Deadline:
    """When a call has to be done.

    Args:
        seconds: Time that it has; None for no limit.
    """

    seconds: float | None = None
    _end: float = field(init=False)

    def __post_init__(self) -> None:
        self._end = float("inf") if self.seconds is None else time.monotonic() + self.seconds

    @property
    def left(self) -> float:
        return self._end - time.monotonic()

    def check(self, analysis: str | None = None) -> None:
        """Raise ClientError if the time is up."""
        if self.left <= 0:
            text = f"It was not done within {self.seconds:g} seconds."
            advice = "The analysis goes on: wait for it again." if analysis else "Allow more time."
            raise ClientError(text, code=DEADLINE, advice=advice, analysis=analysis)


UNLIMITED = Deadline()


def delay(attempt: int, wanted: float | None = None) -> float:
    """Return the seconds before the next attempt.

    Args:
        attempt: Number of the failed attempts so far, from 1.
        wanted: What the server asks to wait.
    """
    # Jitter, so that clients that failed together do not come back together.
    spread = random.uniform(0.5, 1.0) * min(_LONGEST_DELAY, _FIRST_DELAY * 2.0 ** min(attempt - 1, 10))  # noqa: S311
    return spread if wanted is None else wanted + 0.2 * spread


def retry_after(reply: Reply) -> float | None:
    """Return the seconds in Retry-After, which may also be a date; None if there are none."""
    text = reply.headers.get("retry-after", "")
    if text.isdecimal():
        return float(text)
    with suppress(ValueError, TypeError):
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    return None


def request(session: Session, send: Send, deadline: Deadline, progress: ProgressSink = ignore) -> Flow[Reply]:
    """Send until the server answers with something other than "later"; return a response below 400.

    Args:
        session: What requests share.
        send: The request.
        deadline: When to give up, however patient the session is.
        progress: Called before each pause.

    Raises:
        ClientError: if the response is an error, or there is none in time.
    """
    patience, busy, attempt = Deadline(session.retry_seconds), Deadline(session.busy_seconds), 0
    while True:
        deadline.check()
        attempt, is_busy = attempt + 1, False
        try:
            reply: Reply = yield replace(send, seconds=min(send.seconds, max(deadline.left, _LEAST_SECONDS)))
        except LostError as lost:
            error = unreachable(session, lost)
            again, left = session.answered, patience.left
        else:
            session.answered = True
            if reply.status < 400:
                return reply
            error = problem(reply.status, reply.body)
            error.retry_after = retry_after(reply)
            is_busy = reply.status == BUSY
            again, left = reply.status in AGAIN, (busy if is_busy else patience).left
        pause = delay(attempt, error.retry_after)
        if not again or pause > min(left, deadline.left):
            raise error
        progress({"phase": "busy", "reason": error.detail})
        yield Sleep(pause)
        if is_busy:  # and so is not away
            patience = Deadline(session.retry_seconds)


def opened(session: Session, stream: Open) -> Flow[Reply | None]:
    """Open a stream once; None if there is no connection.

    Raises:
        ClientError: if the response is an error other than "later".
    """
    try:
        reply: Reply = yield stream
    except LostError as lost:
        if not session.answered:
            raise unreachable(session, lost) from lost
        return None
    session.answered = True
    if reply.status >= 400 and reply.status not in AGAIN:
        raise problem(reply.status, reply.body)
    return reply


def unreachable(session: Session, lost: LostError) -> ClientError:
    return ClientError(
        f"{session.url} can't be reached: {lost}", code=UNREACHABLE, advice="Check the address and that a server runs."
    )
