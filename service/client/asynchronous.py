"""The asynchronous client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar
from uuid import UUID

from service.client import connection, flows
from service.client.effects import Call, Effect, Event, Flow, LostError, Open, Reply, Send, Sleep, advanced
from service.client.files import Source
from service.client.flows import ProgressSink, Reference, Rules
from service.client.following import follow, handed_out
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
        self, url: str, key: str | None = None, *, retry_seconds: float = 60.0, http: httpx.AsyncClient | None = None
    ) -> None:
        headers = connection.authorization(key)
        import httpx

        self._http, self._owned = http or httpx.AsyncClient(), http is None
        self._url, self._headers = url.rstrip("/"), headers
        self._session = Session(self._url, retry_seconds)

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
        idempotency_key: str | None = None,
        within: float | None = None,
        progress: ProgressSink = flows.ignore,
    ) -> Report:
        """As ``Client.analyze``."""
        deadline = Deadline(within)
        analysis = await self.submit(
            *(model, batch, options, policy),
            baseline=baseline,
            name=name,
            labels=labels,
            priority=priority,
            timeout_s=timeout_s,
            fresh=fresh,
            idempotency_key=idempotency_key,
            within=within,
            progress=progress,
        )
        return await self._run(flows.finished(self._session, str(analysis.id), deadline, progress))

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
        idempotency_key: str | None = None,
        within: float | None = None,
        progress: ProgressSink = flows.ignore,
    ) -> Analysis:
        """As ``Client.submit``; files are read by threads."""
        wanted = flows.Wanted(
            model=model,
            batch=batch,
            options=options,
            policy=policy,
            baseline=baseline,
            name=name,
            labels=labels or {},
            priority=priority,
            timeout_s=timeout_s,
            fresh=fresh,
        )
        flow = flows.submit(self._session, wanted, key=idempotency_key, deadline=Deadline(within), progress=progress)
        return await self._run(flow)

    async def wait(
        self,
        analysis: Analysis | UUID | str,
        *,
        within: float | None = None,
        progress: ProgressSink = flows.ignore,
    ) -> Analysis:
        """As ``Client.wait``."""
        flow = flows.wait(self._session, flows.identifier(analysis), Deadline(within), progress)
        return await self._run(flow)

    async def get(self, analysis: Analysis | UUID | str) -> Analysis:
        """As ``Client.get``."""
        return await self._run(flows.get(self._session, flows.identifier(analysis), Deadline()))

    async def report(self, analysis: Analysis | UUID | str) -> Report:
        """As ``Client.report``."""
        return await self._run(flows.report(self._session, analysis, Deadline()))

    async def cancel(self, analysis: Analysis | UUID | str) -> Analysis:
        """As ``Client.cancel``."""
        return await self._run(flows.cancel(self._session, flows.identifier(analysis), Deadline()))

    async def compare(
        self,
        candidate: Reference,
        baseline: Reference | None,
        policy: Rules,
        *,
        learning_rate: float | None = None,
    ) -> Verdict:
        """As ``Client.compare``."""
        return await self._run(flows.compare(self._session, candidate, baseline, policy, learning_rate, Deadline()))

    async def baseline(self, name: str) -> Baseline:
        """As ``Client.baseline``."""
        return await self._run(flows.baseline(self._session, name, Deadline()))

    async def promote(self, name: str, analysis: Analysis | UUID | str, *, allow_older: bool = False) -> Baseline:
        """As ``Client.promote``."""
        flow = flows.promote(self._session, name, flows.identifier(analysis), allow_older, Deadline())
        return await self._run(flow)

    async def events(
        self, analysis: Analysis | UUID | str, *, last_event_id: str | None = None, within: float | None = None
    ) -> AsyncIterator[Event]:
        """As ``Client.events``."""
        flow = follow(self._session, flows.identifier(analysis), last_event_id, Deadline(within), handed_out)
        async with _Performer(self._http, self._url, self._headers) as performer:
            outcome: object = None
            while True:
                try:
                    effect = advanced(flow, outcome)
                except StopIteration:
                    return
                if isinstance(effect, Event):
                    yield effect
                    outcome = None
                else:
                    outcome = await performer.outcome(effect)

    async def _run(self, flow: Flow[T]) -> T:
        async with _Performer(self._http, self._url, self._headers) as performer:
            outcome: object = None
            while True:
                try:
                    effect = advanced(flow, outcome)
                except StopIteration as done:
                    result: T = done.value
                    return result
                outcome = await performer.outcome(effect)


class _Performer:
    """Does what a flow asks for; holds the stream that is open.

    Args:
        http: Client of httpx.
        url: Address of the server.
        headers: Headers of every request.
    """

    def __init__(self, http: httpx.AsyncClient, url: str, headers: Mapping[str, str]) -> None:
        self._http = http
        self._url = url
        self._headers = headers
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
                case _:
                    return None if self._lines is None else await anext(self._lines, None)
        except httpx.TransportError as error:
            return LostError(str(error) or type(error).__name__)

    async def _sent(self, send: Send) -> Reply:
        with ExitStack() as stack:
            more: dict[str, Any] = {"content": send.content}
            if send.file is not None and send.file.data:
                more = {"files": send.file.opened(stack, send.progress)}
            elif send.file is not None:
                more = {"content": _chunks(send.file.chunks(send.progress))}
            response = await self._http.request(
                send.method,
                self._url + send.path,
                headers={**self._headers, **connection.headers(send)},
                timeout=send.seconds,
                **more,
            )
        return connection.reply(response, response.content)

    async def _opened(self, stream: Open) -> Reply:
        await self._stream.aclose()
        self._lines = None
        headers = {**self._headers, **stream.headers}
        request = self._http.stream("GET", self._url + stream.path, headers=headers, timeout=stream.seconds)
        response = await self._stream.enter_async_context(request)
        if response.status_code == 200:
            self._lines = response.aiter_lines()
            return connection.reply(response)
        return connection.reply(response, await response.aread())


async def _chunks(chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Yield chunks that a thread reads."""
    while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
        yield chunk
