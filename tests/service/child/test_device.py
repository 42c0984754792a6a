"""What a child does on a GPU before its request, and whether a GPU works; two simulated ones stand in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support import simulated
from support.sandbox import background

from service.child.device import require_working, start
from service.child.entry import _options
from service.child.protections import active_protections
from service.sandbox import SandboxError
from service.settings import Settings
from wsb_engine import ResourceError, devices

simulated.load()


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[simulated.Devices]:
    with simulated.as_gpus(monkeypatch) as both:
        yield both
        devices.select(devices.numbered(0))


def test_gpus_that_work_are_tried_in_each_way(gpus: simulated.Devices) -> None:
    require_working(["cuda:0", "cuda:1"])
    assert all(gpus.counts(index).launches > 5 for index in (0, 1))


@pytest.mark.parametrize("launches", [0, 2, 4])
def test_a_gpu_that_fails_is_named_with_what_the_driver_says(launches: int, gpus: simulated.Devices) -> None:
    gpus.fail_after(launches, index=1)
    with pytest.raises(ResourceError, match="cuda:1 does not work: CUDA error: unspecified launch failure") as caught:
        require_working(["cuda:0", "cuda:1"])
    assert caught.value.code == "device_failed"


def test_a_gpu_that_computes_wrong_numbers_does_not_work(
    gpus: simulated.Devices, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = torch.nn.functional.conv2d
    monkeypatch.setattr(
        "torch.nn.functional.conv2d", lambda x, w: right(x, w) * (1.01 if devices.is_gpu(x.device) else 1)
    )
    with pytest.raises(ResourceError, match="its numbers differ from the CPU's by"):
        require_working(["cuda:0"])


def test_libraries_of_each_gpu_are_loaded_and_the_first_is_current(gpus: simulated.Devices) -> None:
    start("cuda:1", "cuda:0")
    assert devices.name(devices.current()) == "cuda:1"
    assert all(gpus.counts(index).launches > 0 for index in (0, 1))


def test_a_gpu_that_the_driver_has_lost_is_missed_even_where_the_cpu_would_do(
    gpus: simulated.Devices, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = {"options": {"device": "auto"}, "gpus": ["cuda:1"]}
    assert _options(request).device == "auto"
    monkeypatch.setattr(devices, "count", lambda: 1)
    with pytest.raises(ResourceError, match="cuda:1 can't be found any more") as caught:
        _options(request)
    assert caught.value.code == "device_failed"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_worker_without_its_gpu_learns_why_from_a_child(tmp_path: Path) -> None:
    shared = background()
    tried = active_protections(Settings(_env_file=None), shared.engine, tmp_path, device="cuda:0", try_device=True)
    with pytest.raises(SandboxError, match="cuda:0 does not work") as caught:
        shared.call(tried).result()
    assert caught.value.code == "device_failed"
