"""A worker on a simulated GPU, with the real engine in the real sandbox."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import simulated
from support.sandbox import FAKE_ENTRY
from support.service import DEADLINE, Files, Service, StartService, submit, until

from service.child.entry import ENTRY, PRELOAD
from service.sandbox import SandboxError, Zygote
from service.worker.worker import work

pytestmark = pytest.mark.slow  # each process imports the engine

TESTS = Path(__file__).parents[2]


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """A folder with the module that the zygote preloads, beside which a test can leave a mark."""
    simulated.require_compiler()
    simulated.built()
    folder = tmp_path / "code"
    folder.mkdir()
    shutil.copy(FAKE_ENTRY / "simulated_child.py", folder)
    return folder


@contextmanager
def working(service: Service, device: str, code: Path) -> Iterator[list[SandboxError]]:
    """Run a worker while the block runs; yields a list that receives why it has left."""
    stops: list[Callable[[], None]] = []
    left: list[SandboxError] = []

    async def main() -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        stops.append(lambda: loop.call_soon_threadsafe(stop.set))
        zygote = Zygote(("simulated_child", *PRELOAD), python_path=[code, TESTS])
        url = str(service.settings.database_url)
        try:
            await work(service.settings, url, device=device, stop=stop, zygote=zygote, entry=ENTRY)
        except SandboxError as error:
            left.append(error)

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    try:
        until(lambda: left or service.client.get("/readyz").status_code == 200)
        yield left
    finally:
        if thread.is_alive():
            stops[0]()
        thread.join(DEADLINE)


def report(service: Service, analysis: str) -> dict[str, object]:
    found: dict[str, object] = service.client.get(f"/v1/analyses/{analysis}/report").json()
    return found


def test_analyses_run_on_one_gpu_and_on_both(start_service: StartService, files: Files, code: Path) -> None:
    api = start_service(worker=False)
    with working(api, "cuda:1+cuda:0", code):
        named, small, both = (
            submit(api, files, **options) for options in ({"device": "cuda:1"}, {"device": "auto"}, {"devices": "all"})
        )
        devices = []
        for analysis in (named, small, both):
            ended = api.ended(analysis)
            assert ended["state"] == "succeeded", ended["error"]
            found = report(api, analysis)
            assert "seccomp" in found["engine"]["sandbox"]
            assert all(check["passed"] for check in found["checks"])
            devices.append(found["engine"]["device"])
        assert devices == ["cuda:1", "cpu", "cuda:1"]
        assert "split" in {warning["code"] for warning in found["warnings"]}


def test_a_gpu_that_is_lost_fails_no_analysis(start_service: StartService, files: Files, code: Path) -> None:
    api = start_service(worker=False)
    with working(api, "cuda:0", code) as left:
        assert api.ended(submit(api, files, device="cuda"))["state"] == "succeeded"
        (code / "broken").touch()
        # The child of the first was forked before.
        analyses = [submit(api, files, device="cuda", seed=seed) for seed in (1, 2, 3)]
        until(lambda: left)
        assert "cuda:0 does not work: CUDA error" in left[0].message
        assert "cuda:0 does not work" in api.client.get("/readyz").json()["detail"]
    with working(api, "cuda:0", code) as left:
        until(lambda: left)
        assert left[0].code == "device_failed"
    (code / "broken").unlink()
    with working(api, "cuda:0", code):
        for analysis in analyses:
            ended = api.ended(analysis)
            assert (ended["state"], ended["attempts"]) == ("succeeded", 1)
