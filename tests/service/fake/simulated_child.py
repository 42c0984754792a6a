"""What a zygote preloads so that its children find two simulated GPUs; for test_simulated_gpu.py."""

from __future__ import annotations

import os
from pathlib import Path

from support import simulated

import wsb_engine.devices
from service.sandbox import grants

BROKEN = Path(__file__).with_name("broken")
"""If it is there, the first GPU of every child that is forked from then on does not work."""

# As on a machine with a GPU, nothing is differentiated before a child is forked: torch would start threads.
grants.gpu_devices = lambda gpu: ["/dev/null"] if gpu else []
devices = simulated.load()
wsb_engine.devices.ACCELERATOR = simulated.NAME


def _break() -> None:
    if BROKEN.exists():
        devices.fail_after(0)


os.register_at_fork(after_in_child=_break)
