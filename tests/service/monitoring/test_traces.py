"""Traces: a request's span continues the client's, the worker's continues the request's."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import structlog
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from pydantic import ValidationError
from support.service import DEADLINE, Files, Service, StartService, until

from service import traces
from service.settings import Settings
from service.traces import Tracing, carried

NOWHERE = "http://127.0.0.1:9"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = {"traceparent": f"00-{TRACE}-{PARENT}-01"}


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """Takes the place of the collector."""
    exporter = InMemorySpanExporter()
    monkeypatch.setattr(traces, "span_processor", lambda endpoint: SimpleSpanProcessor(exporter))
    return exporter


def named(spans: InMemorySpanExporter, name: str) -> ReadableSpan:
    found: list[ReadableSpan] = until(lambda: [span for span in spans.get_finished_spans() if span.name == name])
    return found[0]


def identity(span: ReadableSpan) -> tuple[str, str]:
    assert span.context is not None
    return f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}"


def parent(span: ReadableSpan) -> str | None:
    return None if span.parent is None else f"{span.parent.span_id:016x}"


def submit(service: Service, files: Files, output: str = "") -> str:
    form = {**files, "request": json.dumps({"options": {"output": output or None}}).encode()}
    identifier: str = service.client.post("/v1/analyses", files=form, headers=TRACEPARENT).json()["id"]
    return identifier


def test_a_request_is_a_span_in_the_clients_trace(start_service: StartService, spans: InMemorySpanExporter) -> None:
    api = start_service(worker=False, otlp_endpoint=NOWHERE)
    api.client.get(f"/v1/models/sha256:{0:064x}", headers=TRACEPARENT)
    span = named(spans, "GET /v1/models/{model_id}")
    assert (identity(span)[0], parent(span), span.kind) == (TRACE, PARENT, SpanKind.SERVER)
    attributes = dict(span.attributes or {})
    assert attributes["http.request.method"] == "GET"
    assert attributes["http.route"] == "/v1/models/{model_id}"
    assert attributes["http.response.status_code"] == 404


def test_without_a_clients_trace_a_request_starts_one(start_service: StartService, spans: InMemorySpanExporter) -> None:
    api = start_service(worker=False, otlp_endpoint=NOWHERE)
    api.client.get("/v1/capabilities", headers={"traceparent": "nonsense"})
    assert parent(named(spans, "GET /v1/capabilities")) is None


def test_probes_are_not_traced(start_service: StartService, spans: InMemorySpanExporter) -> None:
    api = start_service(worker=False, otlp_endpoint=NOWHERE)
    for path in ("/healthz", "/readyz", "/metrics", "/v1/capabilities"):
        api.client.get(path)
    named(spans, "GET /v1/capabilities")
    assert len(spans.get_finished_spans()) == 1


def test_the_lines_of_a_request_carry_its_trace(start_service: StartService, spans: InMemorySpanExporter) -> None:
    api = start_service(worker=False, otlp_endpoint=NOWHERE)
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        api.client.get("/v1/capabilities", headers=TRACEPARENT)
        until(lambda: [line for line in lines if line["event"] == "request"])
    assert [line["trace_id"] for line in lines if line["event"] == "request"] == [TRACE]


@pytest.mark.slow
def test_the_workers_span_continues_the_trace_that_its_job_carries(
    start_service: StartService, spans: InMemorySpanExporter, files: Files
) -> None:
    api = start_service(worker=False, otlp_endpoint=NOWHERE)
    analysis = submit(api, files)
    trace, span_id = identity(named(spans, "POST /v1/analyses"))
    argument = json.dumps({"traceparent": f"00-{trace}-{span_id}-01"})
    api.sql("UPDATE procrastinate_jobs SET args = args || %s::jsonb", argument)
    start_service(otlp_endpoint=NOWHERE)
    api.ended(analysis)
    span = named(spans, "run_analysis")
    assert (identity(span)[0], parent(span), span.kind) == (TRACE, span_id, SpanKind.CONSUMER)
    attributes = dict(span.attributes or {})
    assert (attributes["analysis"], attributes["device"], attributes["attempt"]) == (analysis, "cpu", 1)
    assert [event.name for event in span.events] == ["total"]
    assert span.status.status_code is StatusCode.UNSET


def test_an_analysis_that_fails_marks_its_span(
    start_service: StartService, spans: InMemorySpanExporter, files: Files
) -> None:
    service = start_service(otlp_endpoint=NOWHERE)
    service.ended(submit(service, files, "fail"))
    span = named(spans, "run_analysis")
    assert span.status.status_code is StatusCode.ERROR
    assert dict(span.attributes or {})["error.type"] == "unsupported_operator"


def test_a_job_carries_the_present_trace_and_nothing_without_one(spans: InMemorySpanExporter) -> None:
    async def act() -> dict[str, str]:
        tracing = Tracing(NOWHERE)
        async with tracing.exporting():
            with tracing.job_span("outer", TRACEPARENT["traceparent"], {}) as span:
                assert carried() == {"traceparent": f"00-{TRACE}-{span.get_span_context().span_id:016x}-01"}
        return carried()

    assert asyncio.run(act()) == {}


@pytest.mark.slow
def test_without_an_endpoint_there_are_no_spans_and_no_sdk() -> None:
    program = (
        "import sys\n"
        "from service.server.app import create_app\n"
        "from service.settings import Settings\n"
        "from service.traces import Tracing, carried\n"
        "create_app(Settings(_env_file=None))\n"
        "with Tracing(None).job_span('run_analysis', None, {}) as span:\n"
        "    print(span.is_recording(), carried(), 'opentelemetry.sdk.trace' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False {} False"


@pytest.mark.slow
def test_a_collector_that_is_away_disturbs_nobody(start_service: StartService, files: Files) -> None:
    service = start_service(otlp_endpoint=NOWHERE)
    assert service.ended(submit(service, files))["state"] == "succeeded"


class Collector(ThreadingHTTPServer):
    """Takes spans as OTLP over HTTP; answers nothing while it hangs."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Receiver)
        self.names: list[str] = []
        self.asked = threading.Event()
        self.answers = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Receiver(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        self.server.asked.set()
        body = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.answers.wait(DEADLINE)
        assert self.path == "/v1/traces"
        scopes = [scope for resource in body.resource_spans for scope in resource.scope_spans]
        self.server.names += [span.name for scope in scopes for span in scope.spans]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.answers.set()
        server.shutdown()
        thread.join()


def make_span(endpoint: str) -> float:
    """Makes one span; the seconds that the end of exporting took."""

    async def act() -> float:
        tracing = Tracing(endpoint)
        async with tracing.exporting():
            with tracing.job_span("run_analysis", None, {}):
                pass
            started = time.monotonic()
        return time.monotonic() - started

    return asyncio.run(act())


def test_the_last_spans_reach_the_collector_before_the_process_ends(collector: Collector) -> None:
    collector.answers.set()
    make_span(collector.url)
    assert collector.names == ["run_analysis"]


def test_a_collector_that_hangs_does_not_hold_up_the_end(collector: Collector) -> None:
    seconds = make_span(collector.url)
    assert collector.asked.is_set()
    assert seconds < DEADLINE / 4


def test_an_endpoint_without_the_extra_is_refused_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.traces.installed", lambda: False)
    with pytest.raises(ValidationError, match=r"pip install 'wsb-sharpness\[server,traces\]'"):
        Settings(_env_file=None, otlp_endpoint=NOWHERE)


def test_the_missing_extra_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert traces.installed()
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http", None)
    assert not traces.installed()


def test_an_endpoint_has_to_be_http() -> None:
    with pytest.raises(ValidationError, match="http"):
        Settings(_env_file=None, otlp_endpoint="collector:4317")


def test_the_variable_of_other_programs_is_heeded_and_never_fatal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", NOWHERE)
    monkeypatch.setattr(traces, "installed", lambda: False)
    with structlog.testing.capture_logs() as lines:
        tracing = Tracing(Settings(_env_file=None).otlp_endpoint)
    assert not tracing.on
    assert [line["event"] for line in lines] == ["traces_off"]
