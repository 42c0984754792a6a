"""Traces by OpenTelemetry: off, and free of cost, unless an endpoint is configured.

This module imports only OpenTelemetry's API, which FastAPI depends on; the SDK and the exporter are the extra
``traces`` and are loaded if traces are on. Nothing is registered globally: each application and each worker has its
own provider.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

import structlog
from opentelemetry import trace
from opentelemetry.trace import NoOpTracerProvider, Span, SpanKind, StatusCode, TracerProvider
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

import wsb_engine

if TYPE_CHECKING:
    from fastapi.telemetry import TelemetryConfig
    from opentelemetry.sdk.trace import SpanProcessor

ADVICE = "install the extra: pip install 'wsb-sharpness[server,traces]'"
PROBES = frozenset({"/healthz", "/readyz", "/metrics"})
"""Paths that are requested every few seconds and would hide the rest."""

_FLUSH_SECONDS = 3.0
_CONTEXT = TraceContextTextMapPropagator()

log = structlog.get_logger(__name__)


class Tracing:
    """The tracer of one process.

    Args:
        endpoint: Base URL of a collector that takes OTLP over HTTP; None uses OTEL_EXPORTER_OTLP_ENDPOINT, and if that
            is unset, traces are off.
    """

    def __init__(self, endpoint: str | None) -> None:
        endpoint = endpoint or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
        self._endpoint = endpoint
        self.on = bool(endpoint) and installed()
        if endpoint and not self.on:
            log.warning("traces_off", reason="OpenTelemetry's SDK or exporter is missing", advice=ADVICE)
        self.provider: TracerProvider = _provider() if self.on else NoOpTracerProvider()
        self._tracer = self.provider.get_tracer("wsb", wsb_engine.__version__)

    @asynccontextmanager
    async def exporting(self) -> AsyncIterator[None]:
        """Send spans during the block; at its end, wait a few seconds for the last ones to be sent."""
        if not self.on or self._endpoint is None:
            yield
            return
        from opentelemetry.sdk.trace import TracerProvider as SdkProvider

        assert isinstance(self.provider, SdkProvider)  # noqa: S101 - the constructor says so
        self.provider.add_span_processor(span_processor(self._endpoint))
        try:
            yield
        finally:
            # A daemon thread: a collector that hangs must not delay the end of the process.
            last = threading.Thread(target=self.provider.shutdown, daemon=True)
            last.start()
            await asyncio.to_thread(last.join, _FLUSH_SECONDS)

    def telemetry(self) -> TelemetryConfig:
        """Configure FastAPI to give each request, except probes, a span that continues the client's trace."""
        return {
            "tracer_provider": self.provider,
            "tracing": self.on,
            "metrics": False,
            "logs": False,
            "operation_spans": False,
            "auto_configure": False,
            "exclude": lambda scope: scope.get("path") in PROBES,
        }

    @contextmanager
    def job_span(self, name: str, traceparent: str | None, attributes: Mapping[str, str | int]) -> Iterator[Span]:
        """Open a span around a job, in the trace of the request that queued it.

        Args:
            name: Name of the span.
            traceparent: Value from ``carried``; None starts a new trace.
            attributes: Attributes of the span.
        """
        context = _CONTEXT.extract({} if traceparent is None else {"traceparent": traceparent})
        # The text of an exception may contain what must not appear in a trace.
        with self._tracer.start_as_current_span(
            name, context, SpanKind.CONSUMER, attributes, record_exception=False
        ) as span:
            yield span


def installed() -> bool:
    """Whether the extra is installed."""
    try:
        return all(map(find_spec, ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http")))
    except ModuleNotFoundError:
        return False


def carried() -> dict[str, str]:
    """Return the job argument that lets its span continue the current trace; empty without a trace."""
    carrier: dict[str, str] = {}
    _CONTEXT.inject(carrier)
    return {"traceparent": carrier["traceparent"]} if carrier else {}


def trace_id() -> str | None:
    """Return the trace identifier of the current span, as backends show it; None without a trace."""
    context = trace.get_current_span().get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else None


def note(**attributes: str | int) -> None:
    """Add attributes to the current span."""
    trace.get_current_span().set_attributes(attributes)


def add_phases(timings: Mapping[str, float]) -> None:
    """Add the phases of an analysis, whose process has no tracer, to the current span as events."""
    span = trace.get_current_span()
    for phase, seconds in timings.items():
        span.add_event(phase, {"seconds": seconds})


def mark_failed(code: str) -> None:
    """Mark the current span as failed."""
    span = trace.get_current_span()
    span.set_attribute("error.type", code)
    span.set_status(StatusCode.ERROR)


def span_processor(endpoint: str) -> SpanProcessor:
    """Return a processor that sends spans in batches from a background thread; errors there are only logged."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    return BatchSpanProcessor(OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces"))


def _provider() -> TracerProvider:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider as SdkProvider

    named = {"service.name": os.environ.get("OTEL_SERVICE_NAME", "wsb"), "service.version": wsb_engine.__version__}
    return SdkProvider(resource=Resource.create(named), shutdown_on_exit=False)
