"""GPUs in a child: started ahead of a request, and tried before a worker takes any."""

from __future__ import annotations

import torch
from torch import Tensor

from service.child.sample_analysis import run_sample_analysis
from wsb_engine import devices
from wsb_engine.analysis.inputs import device as device_of
from wsb_engine.arithmetic import exact
from wsb_engine.errors import ResourceError, first_line
from wsb_engine.options import Options

_SIZE, _CHANNELS, _PIXELS = 64, 4, 8
_TOLERANCE = 1e-4
"""Largest difference from the CPU, relative to the largest number, in float32."""


def start(*names: str) -> None:
    """Open these GPUs, load their libraries with a small analysis on each, and make the first the current one."""
    for name in reversed(names):
        device = device_of(Options(device=name))
        devices.select(device)
        run_sample_analysis(name)


def require_working(names: list[str]) -> None:
    """Compute a product, a convolution and a gradient on each GPU, and compare them with the CPU's.

    Raises:
        ResourceError: ``device_failed``, which says what failed.
    """
    for name in names:
        try:
            device = torch.device(devices.ACCELERATOR, int(name.partition(":")[2] or 0))
            difference = _difference(device)
        except Exception as error:
            raise _broken(name, first_line(error)) from error
        if not difference <= _TOLERANCE:
            raise _broken(name, f"its numbers differ from the CPU's by {difference:.1e}")


def _broken(name: str, why: str) -> ResourceError:
    return ResourceError(
        f"{name} does not work: {why}",
        code="device_failed",
        advice="Look into the driver's log (dmesg), and check that the driver is new enough for this torch.",
    )


def _difference(device: torch.device) -> float:
    with exact(gpus=True):
        here, there = ([each.cpu() for each in _computed(on)] for on in (torch.device("cpu"), device))
    worst = (float((a - b).abs().max() / a.abs().max()) for a, b in zip(here, there, strict=True))
    return max(worst)


def _computed(device: torch.device) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    factor, image = normal(_SIZE, _SIZE), normal(2, _CHANNELS, _PIXELS, _PIXELS)
    kernel = normal(_CHANNELS, _CHANNELS, 3, 3).requires_grad_()
    filtered = torch.nn.functional.conv2d(image, kernel)
    (slope,) = torch.autograd.grad(filtered.tanh().sum(), kernel)
    return [factor @ factor, factor.double() @ factor.double(), filtered.detach(), slope]
