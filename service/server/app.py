"""The HTTP application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TypedDict

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool

from service.analyses import endpoints as analyses
from service.analyses import events
from service.analyses.baselines import comparisons
from service.analyses.baselines import endpoints as baselines
from service.analyses.baselines.comparison_schemas import ComparisonRequest
from service.analyses.baselines.endpoints import BaselinePromotion
from service.analyses.repository import uses_blob
from service.analyses.schemas import AnalysisRequest, FormRequest
from service.badges import endpoints as badges
from service.badges.endpoints import BadgeRequest
from service.blobs.endpoints import blob_router
from service.blobs.table import NOUNS
from service.context import Context
from service.database.engine import Database
from service.database.notifications import Notifications
from service.database.queue import open_queue
from service.errors import MalformedRequestError
from service.http import openapi, problems
from service.http.middleware import RequestLog
from service.http.security import Authentication
from service.kit.resolver import Resolver
from service.kit.slots import Slots
from service.monitoring import endpoints as monitoring
from service.monitoring.metrics import Metrics, SnapshotReader
from service.monitoring.readiness import Readiness
from service.series import endpoints as series_api
from service.server.postgres import embedded_postgres
from service.server.retention import retention
from service.settings import Settings
from service.storage.factory import open_blobs
from service.traces import Tracing
from service.web import api_docs, comparison, series, sign_in
from service.web import endpoints as web
from service.web.browsers import Browsers, CrossSiteError, MisdirectedError
from service.web.middleware import WebMiddleware
from service.webhooks import endpoints as webhooks
from service.webhooks.deliveries import deliveries
from service.webhooks.endpoints import WebhookRequest

_INTERFACE = "1"
"""Version of the interface, as in /v1: the specification is the same for all builds of it."""
_DESCRIPTION = """\
Certified sharpness of a trained classifier: proven bounds on the largest and smallest eigenvalue of the Hessian of the
cross-entropy, for a model and a batch that you upload.

One request is enough: `POST /v1/analyses` as multipart/form-data with the parts `model` and `batch`, and
`Prefer: wait=30` to receive the report in the response. Errors are RFC 9457 problems with a stable `code`.
"""

_TAGS = [
    {"name": "analyses", "description": "Request an analysis, follow it, fetch its report."},
    {"name": "comparisons", "description": "Apply a policy to reports, alone or against a baseline."},
    {"name": "baselines", "description": "Names for analyses that others are compared with."},
    {"name": "models", "description": "Trained classifiers: ONNX files, PyTorch 2 and TorchScript archives."},
    {"name": "batches", "description": "Labelled samples: .npz and .safetensors files."},
    {"name": "optimizer_states", "description": "Second moments of optimizers: .safetensors files."},
    {"name": "webhooks", "description": "Signed messages when analyses end."},
    {"name": "series", "description": "Numbers along the checkpoints of training runs."},
    {"name": "badges", "description": "Pictures with the certified λ_max of a series."},
    {"name": "service", "description": "Capabilities, health and metrics of the service."},
]


class State(TypedDict):
    """State that the lifespan provides to requests."""

    context: Context
    readiness: Readiness
    metrics: Metrics
    snapshots: SnapshotReader


def create_app(settings: Settings, *, stopping: asyncio.Event | None = None) -> FastAPI:
    """Create the application; its resources are opened when it starts and closed when it stops.

    Args:
        settings: Settings; without a database URL, an embedded Postgres is started.
        stopping: Event to set when the server is about to stop; requests that wait then respond at once.
    """

    metrics, tracing = Metrics(), Tracing(settings.otlp_endpoint)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[State]:
        async with tracing.exporting(), open_context(settings, stopping or asyncio.Event()) as context:
            yield {
                "context": context,
                "readiness": Readiness(context),
                "metrics": metrics,
                "snapshots": SnapshotReader(settings, context.database),
            }

    app = FastAPI(
        title="wsb",
        version=_INTERFACE,
        summary="Certified sharpness of trained classifiers.",
        description=_DESCRIPTION,
        openapi_tags=_TAGS,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        lifespan=lifespan,
        generate_unique_id_function=_operation_id,
        docs_url=None,  # FastAPI's own loads its program from another host
        redoc_url=None,
        redirect_slashes=False,  # the redirect would lead to whatever host name the request has
        telemetry=tracing.telemetry(),
    )
    # The one added last sees a request first, so that rejected requests are logged too.
    app.add_middleware(Authentication, keys=settings.api_keys)
    app.add_middleware(Browsers, keys=settings.api_keys, allow_anonymous=settings.allow_anonymous)
    app.add_middleware(RequestLog, count=metrics.answered)
    app.add_middleware(WebMiddleware, root_path=settings.root_path)
    files = tuple(blob_router(kind, uses_blob) for kind in NOUNS)
    pages = (sign_in.router, api_docs.router, web.router, comparison.router, series.router)
    results = (analyses.router, events.router, comparisons.router, baselines.router)
    # Badges come before series: their paths are public.
    for router in (*results, *files, webhooks.router, badges.router, series_api.router, monitoring.router, *pages):
        app.include_router(router)
    problems.install(app)
    asking = (AnalysisRequest, FormRequest, ComparisonRequest)
    openapi.install(
        app,
        extra_models=(*asking, BaselinePromotion, WebhookRequest, BadgeRequest),
        every=(MalformedRequestError, MisdirectedError),
        changes=(CrossSiteError,),
    )
    return app


@asynccontextmanager
async def open_context(settings: Settings, stopping: asyncio.Event) -> AsyncIterator[Context]:
    """Open the database (embedded, if no URL is given), migrate it, and open blobs, queue and notifications."""
    async with AsyncExitStack() as stack:
        url = settings.database_url
        if url is None:
            embedded = embedded_postgres(settings.data_dir)
            url = await run_in_threadpool(embedded.__enter__)
            stack.push_async_callback(run_in_threadpool, embedded.__exit__, None, None, None)
        database = Database.configured(url, settings)
        stack.push_async_callback(database.close)
        await database.migrate()
        blobs = stack.enter_context(open_blobs(settings))
        notifications = Notifications(url)
        await stack.enter_async_context(notifications.listening())
        tenants = len({key.tenant for key in settings.api_keys})
        context = Context(
            settings=settings,
            database=database,
            blobs=blobs,
            queue=open_queue(url),
            notifications=notifications,
            uploads=Slots(settings.max_uploads, tenants=tenants),
            streams=Slots(settings.max_event_streams, tenants=tenants),
            waits=Slots(settings.max_waiting_requests, tenants=tenants),
            resolver=stack.enter_context(Resolver(settings.webhook_resolutions, settings.webhook_resolution_seconds)),
            stopping=stopping,
        )
        await stack.enter_async_context(retention(context))
        await stack.enter_async_context(deliveries(context))
        yield context


def _operation_id(route: APIRoute) -> str:
    return f"head_{route.name.removeprefix('get_')}" if route.methods == {"HEAD"} else route.name
