"""The blocking client."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
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


class Client:
    """A client of a service, which blocks; a context manager.

    Requests are repeated while the server is busy or has been lost, as ``Retry-After`` says or else after growing,
    random pauses; an analysis is not asked for twice. A server that has never answered is not waited for. What a server
    of an earlier version does not know of a request, and what changes nothing in the report, is left out with an
    ``OlderServerWarning``.

    Args:
        url: Address of the server.
        key: API key, if the server requires one.
        retry_seconds: How long a request is repeated while the server is away (502, 503, 504, or no connection).
        busy_seconds: How long it is repeated while the server has too much to do (429), such as a full queue; None for
            ``retry_seconds``.
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
        self,
        url: str,
        key: str | None = None,
        *,
        retry_seconds: float = 60.0,
        busy_seconds: float | None = None,
        http: httpx.Client | None = None,
    ) -> None:
        self._session = connection.open_session(url, key, retry_seconds, busy_seconds)
        import httpx

        self._http, self._owned = http or httpx.Client(), http is None

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
        optimizer_state: Source | None = None,
        idempotency_key: str | None = None,
        within: float | None = None,
        progress: ProgressSink = ignore,
    ) -> Report:
        """Analyse on the server and return the report.

        Takes what ``submit`` takes; ``within`` limits all of it, and ``progress`` reports on the analysis too. The
        verdict of a policy belongs to the analysis, which ``submit`` and ``wait`` return.

        Raises:
            ClientError: if a request fails, the analysis ends without a report, or the time is up: it then goes on.
            EngineError, OSError: as ``submit``.
        """
        wanted = flows.Wanted(
            *(model, batch, options, policy, baseline, name, labels, priority, timeout_s, fresh), optimizer_state
        )
        deadline = Deadline(within)
        flow = flows.analyze(self._session, wanted, key=idempotency_key, deadline=deadline, progress=progress)
        return self._run(flow)

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
        optimizer_state: Source | None = None,
        idempotency_key: str | None = None,
        within: float | None = None,
        progress: ProgressSink = ignore,
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
            optimizer_state: Second moments for the option ``optimizer``: the path of a .safetensors file, its content,
                or the identifier of an uploaded one.
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
            *(model, batch, options, policy, baseline, name, labels, priority, timeout_s, fresh), optimizer_state
        )
        flow = flows.submit(self._session, wanted, key=idempotency_key, deadline=Deadline(within), progress=progress)
        return self._run(flow)

    def wait(
        self,
        analysis: Named,
        *,
        within: float | None = None,
        progress: ProgressSink = ignore,
    ) -> Analysis:
        """Wait until an analysis has ended, in whatever state, and return it.

        Args:
            analysis: The analysis, or its identifier.
            within: Seconds to wait; the analysis then goes on. None for no limit.
            progress: Called while it runs.

        Raises:
            ClientError: if a request fails or the time is up.
        """
        flow = flows.wait(self._session, analysis, Deadline(within), progress)
        return self._run(flow)

    def get(self, analysis: Named) -> Analysis:
        """Return an analysis as it is now; raises ClientError."""
        return self._run(flows.get(self._session, analysis))

    def report(self, analysis: Named) -> Report:
        """Return the report of an analysis that has succeeded.

        Raises:
            ClientError: ``report_not_ready`` or ``no_report`` if there is none; if ``wait`` has returned the analysis,
                the error with which it ended.
        """
        return self._run(flows.report(self._session, analysis))

    def cancel(self, analysis: Named) -> Analysis:
        """Cancel an analysis; raises ClientError ``analysis_final`` if it has ended in another way."""
        return self._run(flows.cancel(self._session, analysis))

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
        return self._run(flows.compare(self._session, candidate, baseline, policy, learning_rate))

    def baseline(self, name: str) -> Baseline:
        """Return the baseline of this name; raises ClientError ``baseline_not_found`` if there is none."""
        return self._run(flows.baseline(self._session, name))

    def promote(self, name: str, analysis: Named, *, allow_older: bool = False) -> Baseline:
        """Make an analysis the baseline of this name.

        Args:
            name: Name of the baseline, new or not.
            analysis: An analysis that has succeeded, or its identifier.
            allow_older: True to replace a baseline that was requested later.

        Raises:
            ClientError: ``baseline_newer`` if the baseline was requested later; others if the analysis can't be one.
        """
        return self._run(flows.promote(self._session, name, analysis, allow_older))

    def events(
        self, analysis: Named, *, last_event_id: str | None = None, within: float | None = None
    ) -> Iterator[Event]:
        """Yield the events of an analysis until it has ended; a broken stream is resumed.

        Args:
            analysis: The analysis, or its identifier.
            last_event_id: ``id`` of the last event that is known.
            within: Seconds to follow it; None for no limit.

        Raises:
            ClientError: if the analysis does not exist, the server stays away, or the time is up.
        """
        run = Run(flows.events(self._session, analysis, last_event_id, Deadline(within)))
        with _Performer(self._http, self._session) as performer:
            effect = run.after(None)
            while effect is not None:
                if isinstance(effect, Event):
                    yield effect
                effect = run.after(performer.outcome(effect))

    def _run(self, flow: Flow[T]) -> T:
        run = Run(flow)
        with _Performer(self._http, self._session) as performer:
            effect = run.after(None)
            while effect is not None:
                effect = run.after(performer.outcome(effect))
        return run.result


class _Performer:
    """Does what a flow asks for; holds the stream that is open.

    Args:
        http: Client of httpx.
        session: Session of the client.
    """

    def __init__(self, http: httpx.Client, session: Session) -> None:
        self._http = http
        self._session = session
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
                case ReadLine():
                    return None if self._lines is None else next(self._lines, None)
                case Event():
                    return None
        except httpx.TransportError as error:
            return connection.lost(error)

    def _sent(self, send: Send) -> Reply:
        with ExitStack() as stack:
            wanted = connection.request(self._session, send, stack)
            response = self._http.request(**wanted)
        return connection.reply(response, response.content)

    def _opened(self, stream: Open) -> Reply:
        self._stream.close()
        self._lines = None
        response = self._stream.enter_context(self._http.stream(**connection.stream(self._session, stream)))
        if response.status_code == 200:
            self._lines = response.iter_lines()
            return connection.reply(response)
        return connection.reply(response, response.read())
