from __future__ import annotations

import os

import pytest
from support.command import wsb_here

from service.kit import devices
from service.kit.devices import (
    UnknownDeviceError,
    chosen_devices,
    engine_names,
    kind_of,
    owned,
    see_only,
    several_devices,
)


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        ("", ["cuda:0"]),
        ("cpu", ["cpu"]),
        ("cuda:1", ["cuda:1"]),
        ("all", ["cuda:0", "cuda:1"]),
    ],
)
def test_a_worker_takes_the_devices_that_it_is_given(
    wanted: str, chosen: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "offered_devices", lambda: ["cuda:0", "cuda:1"])
    assert chosen_devices(wanted) == chosen


@pytest.mark.parametrize("wanted", ["cuda:2", "cuda", "tpu"])
def test_a_device_that_is_not_here_is_refused(wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "offered_devices", lambda: ["cuda:0", "cuda:1"])
    with pytest.raises(UnknownDeviceError, match="it has cuda:0, cuda:1"):
        chosen_devices(wanted)


@pytest.mark.parametrize(
    ("wanted", "name"), [("all", "cuda:0+cuda:1"), ("cuda:1,cuda:0", "cuda:1+cuda:0"), ("cuda:1", "cuda:1")]
)
def test_one_worker_can_own_several_gpus(wanted: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "offered_devices", lambda: ["cuda:0", "cuda:1"])
    assert several_devices(wanted) == name
    assert owned(name) == tuple(name.split("+"))
    assert engine_names(name) == name.split("+")


@pytest.mark.parametrize("wanted", ["cuda:0,cuda:2", "cuda:0,cuda:0", "", "cpu"])
def test_devices_that_one_worker_can_not_own_are_refused(wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "offered_devices", lambda: ["cuda:0", "cuda:1"])
    with pytest.raises(UnknownDeviceError):
        several_devices(wanted)


def test_instances_of_a_gpu_are_devices_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "has_gpu", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-a,MIG-b")
    assert chosen_devices("all") == ["MIG-a", "MIG-b"]
    assert engine_names("MIG-b") == ["cuda:0"]
    assert kind_of("MIG-b") == "cuda"
    with pytest.raises(UnknownDeviceError, match="One worker"):
        several_devices("all")
    see_only("MIG-b")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "MIG-b"


def test_the_command_says_which_devices_there_are() -> None:
    ended = wsb_here("worker", "--device", "cuda:99", WSB_DATABASE_URL="postgresql://127.0.0.1/none")
    assert ended.returncode == 2
    assert "This machine has no device 'cuda:99'" in ended.stderr
