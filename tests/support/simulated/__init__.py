"""Two simulated GPUs: torch devices on the CPU's memory that refuse, count and fail as CUDA does (see device.cpp)."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch

import wsb_engine.analysis.estimate
import wsb_engine.devices

NAME = "simulated"
"""torch's name for the devices."""
BUILT = Path(__file__).parents[3] / ".pytest_cache" / "simulated"
SOURCE = Path(__file__).with_name("device.cpp")


@dataclass(frozen=True)
class Counts:
    """What a device did since the last ``reset``."""

    launches: int
    synchronisations: int
    to_device: int
    """Bytes."""
    to_host: int
    held: int
    peak: int


@dataclass
class Properties:
    """What the driver of the devices says of them; by default a GPU that is made for float64."""

    name: str = "Simulated"
    total_memory: int = 4 << 30
    multi_processor_count: int = 100
    major: int = 9
    minor: int = 0


class Devices:
    """Controls both devices."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self.properties = Properties()

    def counts(self, index: int = 0) -> Counts:
        values = (ctypes.c_int64 * 6)()
        self._library.sim_counts(index, values)
        return Counts(*values)

    def reset(self) -> None:
        """Make both whole again, with no limits, and set the counts to 0."""
        self.properties = Properties()
        for index in range(self._library.sim_devices()):
            self._library.sim_reset(index)

    def limit(self, size: int, index: int = 0) -> None:
        """Have memory run out beyond so many bytes."""
        self._library.sim_limit(index, ctypes.c_int64(size))

    def fail_after(self, launches: int, index: int = 0) -> None:
        """Have the device fail for good after so many more launches."""
        self._library.sim_fail_after(index, ctypes.c_int64(launches))


def require_compiler() -> None:
    """Skip the test or its module where there is no compiler; fail in CI."""
    if shutil.which("g++") is None:
        if os.environ.get("CI") == "true":
            raise RuntimeError("g++ is needed to simulate GPUs")
        pytest.skip("g++ is needed to simulate GPUs", allow_module_level=True)


@cache
def load() -> Devices:
    """Register the devices with torch in this process; compile them first if that has not been done.

    A module of tests does so when it is imported: once something was differentiated in a process, torch takes no more
    devices.
    """
    require_compiler()
    library = ctypes.CDLL(str(built()))
    devices = Devices(library)
    library.sim_register()
    torch.utils.rename_privateuse1_backend(NAME)
    torch._register_device_module(NAME, _module(library, devices))
    torch.utils.generate_methods_for_privateuse1_backend(for_module=False, for_storage=False)
    return devices


def built() -> Path:
    """Return the compiled library of this source and this torch."""
    content = SOURCE.read_bytes() + torch.__version__.encode()
    library = BUILT / f"{hashlib.sha256(content).hexdigest()[:16]}.so"
    BUILT.mkdir(parents=True, exist_ok=True)
    with (BUILT / "lock").open("w") as lock:  # of several processes one compiles
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            _compile(library)
    return library


def _compile(library: Path) -> None:
    root = Path(torch.__file__).parent
    headers = [f"-I{root / 'include'}", f"-I{root / 'include' / 'torch' / 'csrc' / 'api' / 'include'}"]
    partial = library.with_suffix(".partial")
    interface = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    flags = ["-std=c++20", "-O1", "-w", "-shared", "-fPIC", interface]
    linked = [f"-L{root / 'lib'}", "-ltorch_cpu", "-lc10"]
    subprocess.run(["g++", *flags, *headers, str(SOURCE), "-o", str(partial), *linked], check=True)
    partial.rename(library)


def _module(library: ctypes.CDLL, devices: Devices) -> types.ModuleType:
    """The functions of ``torch.cuda`` that the engine and torch call."""
    module = types.ModuleType(f"torch.{NAME}")
    index = lambda device: torch.device(device).index or 0  # noqa: E731
    module.__dict__.update(
        is_available=lambda: True,
        is_initialized=lambda: True,
        device_count=library.sim_devices,
        current_device=library.sim_current,
        set_device=lambda device: library.sim_set_current(index(device)),
        get_device_properties=lambda device: devices.properties,
        synchronize=lambda device=None: library.sim_synchronise(0 if device is None else index(device)),
        empty_cache=lambda: None,
        manual_seed_all=lambda seed: None,
        get_rng_state=lambda device=None: torch.zeros(1, dtype=torch.uint8),
        set_rng_state=lambda state, device=None: None,
        _is_in_bad_fork=lambda: False,
        get_amp_supported_dtype=lambda: [torch.float16],
    )
    return module


@contextmanager
def as_gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[Devices]:
    """Have the engine take the simulated devices for cuda:0 and cuda:1."""
    devices = load()
    devices.reset()
    monkeypatch.setattr(wsb_engine.devices, "ACCELERATOR", NAME)
    yield devices
    devices.reset()


_OF_THE_CPU = """
    analysis/test_eigenpairs analysis/test_estimate analysis/test_logits curvature/closed_form/test_running_error
    curvature/losses/test_new_loss curvature/products/ test_work
    analysis/test_losses.py::test_chunks_of_any_size_add_up analysis/test_losses.py::test_every_product_is_that_of
    analysis/test_moments.py::test_auto_takes_probes_of_an_mlp_whose_closed_form_costs_too_much
    analysis/test_perturbation.py::test_a_derivative_that_vanishes_by_the_values
    analysis/test_perturbation.py::test_inputs_that_are_only_compared_do_not_widen_the_enclosure
    curvature/test_team.py::test_one_device_by_name formats/test_module.py::test_what_is_computed_anew_under_hooks
    test_devices.py::test_auto_leaves_a_small_analysis_to_the_cpu
    test_doctests.py::test_an_example_prints_what_it_says[estimate]
"""
OF_THE_CPU = re.compile(r"tests/engine/(" + "|".join(map(re.escape, _OF_THE_CPU.split())) + ")")
"""Tests that put tensors of their own beside the engine's, or say what it does on a CPU; all others hold on a GPU."""


def everywhere() -> None:
    """Have the engine take the simulated devices for GPUs in all of this process, and prefer them for small models."""
    load()
    wsb_engine.devices.ACCELERATOR = NAME
    wsb_engine.analysis.estimate.SMALL_MODEL = -1
