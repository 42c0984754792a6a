"""The blocking client."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
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


class Client:
    """A client of a service, which blocks; a context manager.

    Requests are repeated while the server is busy (429, 503) or has been lost, with growing, random pauses, for
    ``retry_seconds``; an analysis is not asked for twice. A server that has never answered is not waited for.

    Args:
        url: Address of the server.
        key: API key, if the server requires one.
        retry_seconds: How long a request is repeated.
        http: Client of httpx to use, such as one with a proxy or certificates; it is not closed.

    Examples:
        >>> import wsb
        >>> with wsb.Client("http://127.0.0.1:8000") as client:  # doctest: +SKIP
        ...     report = client.analyze("model.onnx", "batch.npz")

    Raises:
        ModuleNotFoundError: if httpx is not installed.
        ValueError: if the key contains what no key does.
    """

    def __init__(
        self, url: str, key: str | None = None, *, retry_seconds: float = 60.0, http: httpx.Client | None = None
    ) -> None:
        headers = connection.authorization(key)
        import httpx

        self._http, self._owned = http or httpx.Client(), http is None
        self._url, self._headers = url.rstrip("/"), headers
        self._session = Session(self._url, retry_seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        if self._owned:
            self._http.close()

    def analyze(
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
        """Analyse on the server and return the report.

        Takes what ``submit`` takes; ``within`` limits all of it, and ``progress`` is told of the analysis too. The
        verdict of a policy belongs to the analysis, which ``submit`` and ``wait`` return.

        Raises:
            ClientError: if a request fails, the analysis ends without a report, or the time is up: it then goes on.
            EngineError, OSError: as ``submit``.
        """
        deadline = Deadline(within)
        analysis = self.submit(
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
        return self._run(flows.finished(self._session, str(analysis.id), deadline, progress))

    def submit(
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
        """Ask for an analysis and return it, queued or, if an equal one has a report, ended.

        Args:
            model: Path of the model, its content, or the identifier of an uploaded one; data files (ONNX external
                data) are found beside it. A file is sent only if the server does not have it.
            batch: Path of the batch, its content, or the identifier of an uploaded one.
            options: Options of the engine.
            policy: Policy, or the path of its file; the analysis then has a verdict.
            baseline: What the policy compares with: a report, an analysis, or the name of a baseline.
            name: What to call the analysis.
            labels: Names and values for finding the analysis.
            priority: Order among the analyses of the same key.
            timeout_s: Wall-clock limit of the analysis.
            fresh: True to run the analysis even if there is a report of an equal one.
            idempotency_key: Name of this request, to be able to repeat it; None takes a random one.
            within: Seconds that this call may take; None for no limit.
            progress: Called while files are sent.

        Raises:
            ClientError: if the request fails.
            EngineError: if data files of the model are missing.
            PolicyError: if the policy's file is not valid.
            OSError: if a file can't be read.
        """
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
        return self._run(flow)

    def wait(
        self,
        analysis: Analysis | UUID | str,
        *,
        within: float | None = None,
        progress: ProgressSink = flows.ignore,
    ) -> Analysis:
        """Wait until an analysis has ended, in whatever state, and return it.

        Args:
            analysis: The analysis, or its identifier.
            within: Seconds to wait; the analysis then goes on. None for no limit.
            progress: Called while it runs.

        Raises:
            ClientError: if a request fails or the time is up.
        """
        flow = flows.wait(self._session, flows.identifier(analysis), Deadline(within), progress)
        return self._run(flow)

    def get(self, analysis: Analysis | UUID | str) -> Analysis:
        """Return an analysis as it is now; raises ClientError."""
        return self._run(flows.get(self._session, flows.identifier(analysis), Deadline()))

    def report(self, analysis: Analysis | UUID | str) -> Report:
        """Return the report of an analysis that has succeeded.

        Raises:
            ClientError: ``report_not_ready`` or ``no_report`` if there is none; if ``wait`` has returned the analysis,
                the error with which it ended.
        """
        return self._run(flows.report(self._session, analysis, Deadline()))

    def cancel(self, analysis: Analysis | UUID | str) -> Analysis:
        """Cancel an analysis; raises ClientError ``analysis_final`` if it has ended in another way."""
        return self._run(flows.cancel(self._session, flows.identifier(analysis), Deadline()))

    def compare(
        self,
        candidate: Reference,
        baseline: Reference | None,
        policy: Rules,
        *,
        learning_rate: float | None = None,
    ) -> Verdict:
        """Judge a report by a policy, alone or against a baseline; nothing is analysed.

        Args:
            candidate: The report to judge, or its analysis.
            baseline: The report to compare with, its analysis, or the name of a baseline.
            policy: Policy, or the path of its file.
            learning_rate: For rules on ``stability_ratio``.

        Raises:
            ClientError: if the request fails.
        """
        return self._run(flows.compare(self._session, candidate, baseline, policy, learning_rate, Deadline()))

    def baseline(self, name: str) -> Baseline:
        """Return the baseline of this name; raises ClientError ``baseline_not_found`` if there is none."""
        return self._run(flows.baseline(self._session, name, Deadline()))

    def promote(self, name: str, analysis: Analysis | UUID | str, *, allow_older: bool = False) -> Baseline:
        """Make an analysis the baseline of this name.

        Args:
            name: Name of the baseline, new or not.
            analysis: An analysis that has succeeded, or its identifier.
            allow_older: True to replace a baseline that was requested later.

        Raises:
            ClientError: ``baseline_newer`` if the baseline was requested later; others if the analysis can't be one.
        """
        flow = flows.promote(self._session, name, flows.identifier(analysis), allow_older, Deadline())
        return self._run(flow)

    def events(
        self, analysis: Analysis | UUID | str, *, last_event_id: str | None = None, within: float | None = None
    ) -> Iterator[Event]:
        """Yield the events of an analysis until it has ended; a broken stream is resumed.

        Args:
            analysis: The analysis, or its identifier.
            last_event_id: ``id`` of the last event that is known.
            within: Seconds to follow it; None for no limit.

        Raises:
            ClientError: if the analysis does not exist, the server stays away, or the time is up.
        """
        flow = follow(self._session, flows.identifier(analysis), last_event_id, Deadline(within), handed_out)
        with _Performer(self._http, self._url, self._headers) as performer:
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
                    outcome = performer.outcome(effect)

    def _run(self, flow: Flow[T]) -> T:
        with _Performer(self._http, self._url, self._headers) as performer:
            outcome: object = None
            while True:
                try:
                    effect = advanced(flow, outcome)
                except StopIteration as done:
                    result: T = done.value
                    return result
                outcome = performer.outcome(effect)


class _Performer:
    """Does what a flow asks for; holds the stream that is open.

    Args:
        http: Client of httpx.
        url: Address of the server.
        headers: Headers of every request.
    """

    def __init__(self, http: httpx.Client, url: str, headers: Mapping[str, str]) -> None:
        self._http = http
        self._url = url
        self._headers = headers
        self._stream = ExitStack()
        self._lines: Iterator[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def outcome(self, effect: Effect) -> object:
        """Return the outcome of an effect; a LostError if there is no connection."""
        import httpx

        try:
            match effect:
                case Call():
                    return effect.function()
                case Sleep():
                    time.sleep(effect.seconds)
                    return None
                case Send():
                    return self._sent(effect)
                case Open():
                    return self._opened(effect)
                case _:
                    return None if self._lines is None else next(self._lines, None)
        except httpx.TransportError as error:
            return LostError(str(error) or type(error).__name__)

    def _sent(self, send: Send) -> Reply:
        with ExitStack() as stack:
            more: dict[str, Any] = {"content": send.content}
            if send.file is not None and send.file.data:
                more = {"files": send.file.opened(stack, send.progress)}
            elif send.file is not None:
                more = {"content": send.file.chunks(send.progress)}
            response = self._http.request(
                send.method,
                self._url + send.path,
                headers={**self._headers, **connection.headers(send)},
                timeout=send.seconds,
                **more,
            )
        return connection.reply(response, response.content)

    def _opened(self, stream: Open) -> Reply:
        self._stream.close()
        self._lines = None
        headers = {**self._headers, **stream.headers}
        request = self._http.stream("GET", self._url + stream.path, headers=headers, timeout=stream.seconds)
        response = self._stream.enter_context(request)
        if response.status_code == 200:
            self._lines = response.iter_lines()
            return connection.reply(response)
        return connection.reply(response, response.read())
