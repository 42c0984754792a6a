"""Metrics for Prometheus: counts of this process, and a snapshot of the database, which all processes share."""

from __future__ import annotations

import math
import platform
import time
from collections import Counter as TallyCounter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError
from starlette.responses import Response

import wsb_engine
from service.analyses.outcomes import CAUSES, PHASES
from service.analyses.table import FINAL_STATES, LIVE_STATES, AnalysisRow, State
from service.database import counters, workers
from service.database.counters import BUCKETS, TotalRow
from service.database.engine import Database
from service.http.middleware import OTHER
from service.kit.shared_call import SharedCall
from service.settings import Settings

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_UPLOADS = {
    "/v1/models": "models",
    "/v1/batches": "batches",
    "/v1/optimizer_states": "optimizer_states",
    "/v1/analyses": "forms",
}
_LATENCIES = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_FRESH_SECONDS = 1.0


class Metrics:
    """Metrics of one application, in their own registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._shared = _Shared()
        self.registry.register(self._shared)
        ProcessCollector(registry=self.registry)
        build = {"version": wsb_engine.__version__, "python": platform.python_version()}
        Info("wsb_build", "Versions of the service and of Python.", registry=self.registry).info(build)
        self._requests = Counter(
            "wsb_http_requests", "Number of HTTP requests.", ["method", "route", "status"], registry=self.registry
        )
        self._latency = Histogram(
            "wsb_http_request_duration_seconds",
            "Time until the response began, including a wait that the client requested with Prefer.",
            ["method", "route"],
            buckets=_LATENCIES,
            registry=self.registry,
        )
        self._upload_bytes = Counter(
            "wsb_upload_bytes",
            "Bytes received as models, as batches, and as forms with both.",
            ["kind"],
            registry=self.registry,
        )
        for kind in _UPLOADS.values():
            self._upload_bytes.labels(kind)
        self._slots = Gauge(
            "wsb_tenant_slots", "Slots of this process that a tenant holds.", ["kind", "tenant"], registry=self.registry
        )

    def answered(self, method: str, route: str, status: int, *, seconds: float, received: int) -> None:
        """Count a request.

        Args:
            method: Method as the client sent it.
            route: Template of the route, or ``OTHER``.
            status: Status of the response; 499 if the client disconnected before it.
            seconds: Seconds until the response began.
            received: Bytes received of the body.
        """
        method = method if method in _METHODS else OTHER
        self._requests.labels(method, route, str(status)).inc()
        self._latency.labels(method, route).observe(seconds)
        if method == "POST" and route in _UPLOADS:
            self._upload_bytes.labels(_UPLOADS[route]).inc(received)

    def exposition(
        self, accept: str, snapshot: DatabaseSnapshot | None, slots: Mapping[str, Mapping[str, int]]
    ) -> Response:
        """Render all metrics in the format that the client prefers.

        Args:
            accept: Accept header of the client.
            snapshot: State of the database; None omits its metrics.
            slots: Slots that tenants hold, by kind and tenant.
        """
        encode, media_type = choose_encoder(accept)
        self._slots.clear()
        for kind, held in slots.items():
            for tenant, number in held.items():
                self._slots.labels(kind, tenant).set(number)
        self._shared.snapshot = snapshot
        return Response(encode(self.registry), media_type=media_type)


@dataclass(frozen=True)
class DatabaseSnapshot:
    """State of the database at one moment."""

    live: dict[State, int]
    tenants: dict[tuple[str, State], int]
    """The live analyses, by tenant and state."""
    oldest_seconds: float
    """Age of the oldest queued analysis; 0 if there is none."""
    workers: dict[str, int]
    """Number of workers by device."""
    failed: dict[str, int]
    """Number of workers that have left because their device failed, by device."""
    totals: Sequence[TotalRow]


class SnapshotReader:
    """Reads a snapshot at most once a second, for any number of callers, with a time limit."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings = settings
        self._database = database
        self._read = SharedCall(self._query)
        self._latest: tuple[float, DatabaseSnapshot] | None = None

    async def read(self) -> DatabaseSnapshot | None:
        """Return a snapshot at most a second old; None if the database does not respond."""
        if self._latest is not None and time.monotonic() - self._latest[0] < _FRESH_SECONDS:
            return self._latest[1]
        try:
            snapshot = await self._read.outcome(self._settings.probe_seconds)
        except (SQLAlchemyError, OSError):
            return None
        self._latest = time.monotonic(), snapshot
        return snapshot

    async def _query(self) -> DatabaseSnapshot:
        # Uses the partial index of live analyses, so ended ones cost nothing.
        waiting = func.extract("epoch", func.now() - func.min(AnalysisRow.created_at))
        of_whom = AnalysisRow.tenant, AnalysisRow.state
        query = select(*of_whom, func.count(), waiting).where(AnalysisRow.state.in_(LIVE_STATES)).group_by(*of_whom)
        async with self._database.transaction() as session:
            live = (await session.execute(query)).all()
            present = await workers.alive(session, within_seconds=self._settings.stalled_seconds)
            gone = await workers.failed(session)
            counted = await counters.read(session)
        return DatabaseSnapshot(
            live={name: sum(count for _, state, count, _ in live if state == name) for name in LIVE_STATES},
            tenants={(tenant, state): count for tenant, state, count, _ in live},
            oldest_seconds=max((float(seconds) for _, state, _, seconds in live if state == "queued"), default=0.0),
            workers=_by_device(present),
            failed=_by_device(gone),
            totals=counted,
        )


def _by_device(rows: Sequence[workers.WorkerRow]) -> dict[str, int]:
    return dict(sorted(TallyCounter(worker.device for worker in rows).items()))


class _Shared(Collector):
    """The snapshot as metrics, the same in every API process."""

    def __init__(self) -> None:
        self.snapshot: DatabaseSnapshot | None = None

    def collect(self) -> Iterator[Metric]:
        snapshot = self.snapshot
        yield GaugeMetricFamily("wsb_database_up", "1 if the database responds.", value=float(snapshot is not None))
        if snapshot is None:
            return
        queued = snapshot.live.get("queued", 0)
        yield GaugeMetricFamily("wsb_queue_depth", "Analyses that wait for a worker.", value=queued)
        yield GaugeMetricFamily(
            "wsb_queue_oldest_seconds", "Age of the oldest queued analysis.", value=snapshot.oldest_seconds
        )
        analyses = GaugeMetricFamily("wsb_analyses", "Analyses that have not ended.", labels=["state"])
        for state in LIVE_STATES:
            analyses.add_metric([state], snapshot.live.get(state, 0))
        yield analyses
        by_tenant = GaugeMetricFamily("wsb_tenant_analyses", "The same by tenant.", labels=["tenant", "state"])
        for labels, count in snapshot.tenants.items():
            by_tenant.add_metric(labels, count)
        yield by_tenant
        present = GaugeMetricFamily("wsb_workers", "Workers that are alive.", labels=["device"])
        for device, count in snapshot.workers.items():
            present.add_metric([device], count)
        yield present
        gone = GaugeMetricFamily(
            "wsb_workers_failed",
            "Workers that left within an hour because their device failed.",
            labels=["device"],
        )
        for device, count in snapshot.failed.items():
            gone.add_metric([device], count)
        yield gone
        yield from _totals(snapshot.totals)

    def describe(self) -> Iterator[Metric]:
        """Claim no names in advance: they depend on the database."""
        return iter(())


def _totals(rows: Sequence[TotalRow]) -> Iterator[Metric]:
    by_name: dict[tuple[str, str], list[TotalRow]] = {}
    for row in rows:
        by_name.setdefault((row.metric, row.label), []).append(row)
    ended = CounterMetricFamily("wsb_analyses_ended", "Analyses that have ended.", labels=["state"])
    failed = CounterMetricFamily("wsb_analysis_failures", "Analyses without a report, by cause.", labels=["cause"])
    for family, metric, labels in ((ended, "ended", FINAL_STATES), (failed, "failed", CAUSES)):
        for label in labels:
            family.add_metric([label], sum(row.count for row in by_name.get((metric, label), ())))
        yield family
    devices = CounterMetricFamily("wsb_device_failures", "Failures of devices during analyses.", labels=["device"])
    for (metric, label), counted in by_name.items():
        if metric == "device_failed":
            devices.add_metric([label], sum(row.count for row in counted))
    yield devices
    wait = HistogramMetricFamily("wsb_queue_wait_seconds", "Time from request to first start.", labels=[])
    wait.add_metric([], *_histogram(by_name.get(("queue_wait", ""), ())))
    yield wait
    duration = HistogramMetricFamily("wsb_analysis_duration_seconds", "Time of analyses with a report.", labels=[])
    duration.add_metric([], *_histogram(by_name.get(("duration", ""), ())))
    yield duration
    phases = HistogramMetricFamily("wsb_analysis_phase_seconds", "The same, by phase.", labels=["phase"])
    for phase in PHASES:
        phases.add_metric([phase], *_histogram(by_name.get(("phase", phase), ())))
    yield phases


def _histogram(rows: Sequence[TotalRow]) -> tuple[list[tuple[str, float]], float]:
    """Return cumulative buckets, as in Prometheus, and the sum."""
    counts = {row.bucket: row.count for row in rows}
    buckets, below = [], 0
    for end in BUCKETS:
        below += counts.get(end, 0)
        buckets.append((str(end) if math.isfinite(end) else "+Inf", float(below)))
    return buckets, sum(row.seconds for row in rows)
