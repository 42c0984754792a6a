"""What a flow asks to be done; ``Client`` and ``AsyncClient`` do it and send the outcome back into the flow."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeAlias, TypeVar

from service.client.files import File

SECONDS = 60.0
"""How long a connection, or a response without a file, may take."""
STORE_SECONDS = 600.0
"""How long a server may take to store a file after it has arrived."""


class LostError(Exception):
    """The connection could not be made, or was lost; sent into the flow in place of an outcome."""


@dataclass(frozen=True)
class Call:
    """Call a function that reads files; the outcome is what it returns."""

    function: Callable[[], Any]


@dataclass(frozen=True)
class Sleep:
    seconds: float


@dataclass(frozen=True)
class Send:
    """Send a request and read the response; the outcome is a ``Reply``."""

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    file: File | None = None
    """A file to send as the body, or in a form if it has data files."""
    progress: Callable[[int], object] = lambda _: None
    """Called with the size of each chunk of ``file`` that is sent."""
    seconds: float = SECONDS
    """How long each step of the exchange may take."""


@dataclass(frozen=True)
class Open:
    """Request a stream; the outcome is a ``Reply``, whose body is empty if it can be read by lines."""

    path: str
    headers: Mapping[str, str]
    seconds: float
    """Silence after which the connection counts as lost."""


@dataclass(frozen=True)
class ReadLine:
    """Read a line of the stream that was opened last; the outcome is None at its end."""


@dataclass(frozen=True)
class Reply:
    """A response."""

    status: int
    headers: Mapping[str, str]
    """By names in lower case."""
    body: bytes = b""

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Event:
    """A server-sent event of an analysis.

    Attributes:
        name: ``state``, ``progress`` or ``end``.
        data: The analysis, its progress, or its final state, as the HTTP API sends them.
        id: Identifier to resume after.
    """

    name: str
    data: dict[str, Any]
    id: str


ProgressSink: TypeAlias = Callable[[dict[str, Any]], object]
"""Called with ``phase`` and ``fraction``, while an analysis runs with what is certified so far, and while the server is
busy with its ``reason``."""

Effect: TypeAlias = Call | Sleep | Send | Open | ReadLine | Event
"""An ``Event`` is for the caller of ``events``, and has no outcome."""

T = TypeVar("T")
Flow: TypeAlias = Generator[Effect, Any, T]


def ignore(message: dict[str, Any]) -> None:
    """The progress that nobody asked for."""


class Run(Generic[T]):
    """A flow that a client goes through, effect by effect.

    Args:
        flow: The flow, which has not begun.
    """

    result: T
    """What the flow returns; set once there is no effect left."""

    def __init__(self, flow: Flow[T]) -> None:
        self._flow = flow

    def after(self, outcome: object) -> Effect | None:
        """Return what to do after the last effect had this outcome, at first None; None at the end of the flow.

        Raises:
            What the flow raises.
        """
        try:
            return self._flow.throw(outcome) if isinstance(outcome, LostError) else self._flow.send(outcome)
        except StopIteration as done:
            self.result = done.value
            return None
