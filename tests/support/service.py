"""The real application over a real socket, and files to send to it."""

from __future__ import annotations

import asyncio
import io
import itertools
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import psycopg
import uvicorn
from onnx import TensorProto, helper, numpy_helper

from service.child.entry import ENTRY
from service.http.listen import server_config
from service.sandbox import SandboxError, Zygote
from service.sandbox.job import LOG_NAME
from service.server.app import create_app
from service.settings import Settings
from service.worker.worker import work
from support.client import connect
from support.sandbox import background, fake_zygote

DEADLINE = 300.0
"""Upper limit of every wait: reached only by what never happens, however busy the machine is."""


def until(condition: Callable[[], Any], *, seconds: float = DEADLINE) -> Any:
    """Waits for the condition to be true and returns what it gave."""
    deadline, pause = time.monotonic() + seconds, 0.02
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(pause)
        pause = min(1.2 * pause, 0.2)  # to ask costs more than what is waited for


@dataclass
class Service:
    """A running service as a test sees it."""

    url: str
    client: httpx.Client
    settings: Settings
    stopping: asyncio.Event
    loop: asyncio.AbstractEventLoop
    worker_stop: asyncio.Event
    worker_left: list[SandboxError]
    """Why the worker has left, if it has."""
    zygote: Zygote

    def leftovers(self) -> list[Path]:
        """Files of uploads that are not kept and folders of jobs that are over; not that of a child that waits."""
        incoming = self.settings.blob_dir / "incoming"
        folders = [*incoming.glob("scratch-*"), *self.settings.job_dir.glob("scratch-*")]
        found = [path for folder in folders for path in folder.iterdir() if path.name != ".owner"]
        return [path for path in found if not path.is_dir() or {entry.name for entry in path.iterdir()} - {LOG_NAME}]

    def stored(self) -> list[Path]:
        return [
            path
            for kind in ("models", "batches", "optimizer_states")
            for path in (self.settings.blob_dir / kind).rglob("*")
            if path.is_file()
        ]

    def ended(self, analysis: str) -> dict[str, Any]:
        """The analysis once it has ended."""
        return until(lambda: (a := self.client.get(f"/v1/analyses/{analysis}").json())["finished_at"] and a)

    def cancel_all(self) -> None:
        """Ends every analysis, and waits until the worker has done with them."""
        for (analysis,) in self.sql("SELECT id FROM analyses WHERE state IN ('queued', 'running')"):
            self.client.post(f"/v1/analyses/{analysis}/cancel")
        busy = (
            "SELECT EXISTS (SELECT FROM analyses WHERE state IN ('queued', 'running', 'cancelling'))"
            " OR EXISTS (SELECT FROM procrastinate_jobs WHERE status = 'doing')"
        )
        until(lambda: self.sql(busy) == [(False,)], seconds=20)

    def sql(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        with psycopg.connect(str(self.settings.database_url), autocommit=True) as connection:
            cursor = connection.execute(query, parameters)
            return cursor.fetchall() if cursor.description else []


StartService = Callable[..., Service]
Files = dict[str, bytes]


def submit(service: Service, files: Files, command: str = "", **options: Any) -> str:
    """Identifier of a new analysis, in which the fake entry obeys ``command``."""
    form = {**files, "request": json.dumps({"options": {"output": command or None, **options}}).encode()}
    identifier: str = service.client.post("/v1/analyses", files=form).json()["id"]
    return identifier


@contextmanager
def running_service(
    settings: Settings, *, worker: bool, device: str = "cpu", engine: bool = False, own_zygote: bool = False
) -> Iterator[Service]:
    """Runs the API, and a worker with the fake entry or the engine; its children come from a shared.engine or its own.

    All services of this process run in one loop, because a zygote belongs to one.
    """
    shared = background()
    entry, zygote = (ENTRY, shared.engine) if engine else ("fake_entry:run", shared.fake)
    if own_zygote:
        zygote = fake_zygote()
    stopping, worker_stop = asyncio.Event(), asyncio.Event()
    server = uvicorn.Server(server_config(create_app(settings, stopping=stopping), settings))
    left: list[SandboxError] = []

    async def run_analyses() -> None:
        url = str(settings.database_url)
        try:
            await work(settings, url, device=device, stop=worker_stop, zygote=zygote, entry=entry)
        except SandboxError as error:
            left.append(error)

    async def main() -> None:
        await asyncio.gather(server.serve([listener]), *([run_analyses()] if worker else []))

    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    # In a context of its own, as in a process of its own.
    running = Context().run(shared.call, main())
    try:
        with connect(url, timeout=DEADLINE) as client:
            until(lambda: server.started or running.done())
            if worker:
                until(lambda: left or running.done() or client.get("/readyz").status_code == 200)
            yield Service(
                url=url,
                client=client,
                settings=settings,
                stopping=stopping,
                loop=shared.loop,
                worker_stop=worker_stop,
                worker_left=left,
                zygote=zygote,
            )
    finally:
        shared.loop.call_soon_threadsafe(stopping.set)
        shared.loop.call_soon_threadsafe(worker_stop.set)
        server.should_exit = True
        running.result(DEADLINE)


def onnx_mlp(sizes: tuple[int, ...] = (4, 5, 3), *, seed: int = 0) -> bytes:
    """A tanh network of these layer sizes with random float64 weights."""
    random = np.random.default_rng(seed)
    nodes, weights, value = [], [], "x"
    for layer, (rows, columns) in enumerate(itertools.pairwise(sizes)):
        shapes = {"w": (rows, columns), "b": (columns,)}
        for name, shape in shapes.items():
            array = random.normal(size=shape) / np.sqrt(rows)
            weights.append(numpy_helper.from_array(array, f"{name}{layer}"))
        nodes.append(helper.make_node("Gemm", [value, f"w{layer}", f"b{layer}"], [f"h{layer}"]))
        value = f"h{layer}"
        if layer < len(sizes) - 2:
            nodes.append(helper.make_node("Tanh", [value], [f"a{layer}"]))
            value = f"a{layer}"
    inputs = [helper.make_tensor_value_info("x", TensorProto.DOUBLE, ["n", sizes[0]])]
    outputs = [helper.make_tensor_value_info(value, TensorProto.DOUBLE, ["n", sizes[-1]])]
    graph = helper.make_graph(nodes, "mlp", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def npz_batch(*, features: int = 4, classes: int = 3, samples: int = 8, seed: int = 0) -> bytes:
    """Random samples with random labels."""
    random = np.random.default_rng(seed)
    buffer = io.BytesIO()
    np.savez(buffer, x=random.normal(size=(samples, features)), y=random.integers(0, classes, samples))
    return buffer.getvalue()
