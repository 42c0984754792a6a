"""The asynchronous client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from service.client import connection, flows
from service.client.effects import (
    Call,
    Effect,
    Event,
    Flow,
    Open,
    ProgressSink,
    ReadLine,
    Reply,
    Run,
    Send,
    Sleep,
    ignore,
)
from service.client.files import Source
from service.client.flows import Named, Reference, Rules
from service.client.resources import Analysis, Baseline
from service.client.retries import Deadline, Session
from service.policies import Verdict
from wsb_engine.options import Options
from wsb_engine.report import Report

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")


class AsyncClient:
    """A client of a service for asyncio; an asynchronous context manager. Otherwise as ``Client``.

    Examples:
        >>> import wsb
        >>> async def sharpness() -> wsb.Report:
        ...     async with wsb.AsyncClient("http://127.0.0.1:8000") as client:
        ...         return await client.analyze("model.onnx", "batch.npz")
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        retry_seconds: float = 60.0,
        busy_seconds: float | None = None,
        http: httpx.AsyncClient | None = None,
    ) -> None:
        self._session = connection.open_session(url, key, retry_seconds, busy_seconds)
        import httpx

        self._http, self._owned = http or httpx.AsyncClient(), http is None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        if self._owned:
            await self._http.aclose()

    async def analyze(
        self,
        model: Source,
        batch: Source,
        options: Options | Mapping[str, Any] | None = None,
        policy: Rules | None = None,
        *,
        baseline: Reference | None = None,
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        priority: int = 0,
        timeout_s: float | None = None,
        fresh: bool = False,
        optimizer_state: Source | None = None,
        idempotency_key: str | None = None,
        within: float | None = None,
        progress: ProgressSink = ignore,
    ) -> Report:
        """As ``Client.analyze``."""
        wanted = flows.Wanted(
            *(model, batch, options, policy, baseline, name, labels, priority, timeout_s, fresh), optimizer_state
        )
        deadline = Deadline(within)
        flow = flows.analyze(self._session, wanted, key=idempotency_key, deadline=deadline, progress=progress)
        return await self._run(flow)

    async def submit(
        self,
        model: Source,
        batch: Source,
        options: Options | Mapping[str, Any] | None = None,
        policy: Rules | None = None,
        *,
        baseline: Reference | None = None,
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        priority: int = 0,
        timeout_s: float | None = None,
        fresh: bool = False,
        optimizer_state: Source | None = None,
        idempotency_key: str | None = None,
        within: float | None = None,
        progress: ProgressSink = ignore,
    ) -> Analysis:
        """As ``Client.submit``; files are read by threads."""
        wanted = flows.Wanted(
            *(model, batch, options, policy, baseline, name, labels, priority, timeout_s, fresh), optimizer_state
        )
        flow = flows.submit(self._session, wanted, key=idempotency_key, deadline=Deadline(within), progress=progress)
        return await self._run(flow)

    async def wait(
        self,
        analysis: Named,
        *,
        within: float | None = None,
        progress: ProgressSink = ignore,
    ) -> Analysis:
        """As ``Client.wait``."""
        flow = flows.wait(self._session, analysis, Deadline(within), progress)
        return await self._run(flow)

    async def get(self, analysis: Named) -> Analysis:
        """As ``Client.get``."""
        return await self._run(flows.get(self._session, analysis))

    async def report(self, analysis: Named) -> Report:
        """As ``Client.report``."""
        return await self._run(flows.report(self._session, analysis))

    async def cancel(self, analysis: Named) -> Analysis:
        """As ``Client.cancel``."""
        return await self._run(flows.cancel(self._session, analysis))

    async def compare(
        self,
        candidate: Reference,
        baseline: Reference | None,
        policy: Rules,
        *,
        learning_rate: float | None = None,
    ) -> Verdict:
        """As ``Client.compare``."""
        return await self._run(flows.compare(self._session, candidate, baseline, policy, learning_rate))

    async def baseline(self, name: str) -> Baseline:
        """As ``Client.baseline``."""
        return await self._run(flows.baseline(self._session, name))

    async def promote(self, name: str, analysis: Named, *, allow_older: bool = False) -> Baseline:
        """As ``Client.promote``."""
        return await self._run(flows.promote(self._session, name, analysis, allow_older))

    async def events(
        self, analysis: Named, *, last_event_id: str | None = None, within: float | None = None
    ) -> AsyncIterator[Event]:
        """As ``Client.events``."""
        run = Run(flows.events(self._session, analysis, last_event_id, Deadline(within)))
        async with _Performer(self._http, self._session) as performer:
            effect = run.after(None)
            while effect is not None:
                if isinstance(effect, Event):
                    yield effect
                effect = run.after(await performer.outcome(effect))

    async def _run(self, flow: Flow[T]) -> T:
        run = Run(flow)
        async with _Performer(self._http, self._session) as performer:
            effect = run.after(None)
            while effect is not None:
                effect = run.after(await performer.outcome(effect))
        return run.result


class _Performer:
    """Does what a flow asks for; holds the stream that is open.

    Args:
        http: Client of httpx.
        session: Session of the client.
    """

    def __init__(self, http: httpx.AsyncClient, session: Session) -> None:
        self._http = http
        self._session = session
        self._stream = AsyncExitStack()
        self._lines: AsyncIterator[str] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stream.aclose()

    async def outcome(self, effect: Effect) -> object:
        """Return the outcome of an effect; a LostError if there is no connection."""
        import httpx

        try:
            match effect:
                case Call():
                    return await asyncio.to_thread(effect.function)
                case Sleep():
                    await asyncio.sleep(effect.seconds)
                    return None
                case Send():
                    return await self._sent(effect)
                case Open():
                    return await self._opened(effect)
                case ReadLine():
                    return None if self._lines is None else await anext(self._lines, None)
                case Event():
                    return None
        except httpx.TransportError as error:
            return connection.lost(error)

    async def _sent(self, send: Send) -> Reply:
        with ExitStack() as stack:
            wanted = connection.request(self._session, send, stack)
            if isinstance(wanted.get("content"), Iterator):
                wanted["content"] = _chunks(wanted["content"])
            response = await self._http.request(**wanted)
        return connection.reply(response, response.content)

    async def _opened(self, stream: Open) -> Reply:
        await self._stream.aclose()
        self._lines = None
        response = await self._stream.enter_async_context(self._http.stream(**connection.stream(self._session, stream)))
        if response.status_code == 200:
            self._lines = response.aiter_lines()
            return connection.reply(response)
        return connection.reply(response, await response.aread())


async def _chunks(chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Yield chunks that a thread reads."""
    while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
        yield chunk
