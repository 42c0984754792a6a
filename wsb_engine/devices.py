"""The GPUs that torch offers: which there are, what they are good at, and which errors mean that one failed."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch

from wsb_engine.errors import ResourceError, first_line

ACCELERATOR = "cuda"
"""torch's name for the devices that options call ``cuda``."""
DOUBLE = {(6, 0): 0.5, (7, 0): 0.5, (8, 0): 0.5, (9, 0): 0.5, (10, 0): 0.5}
"""Rate of float64 relative to float32, by compute capability, of GPUs made for it."""
DOUBLE_OTHERS = 1 / 32
"""The same of all others: graphics cards, and those made for inference."""

_OUT_OF_MEMORY = re.compile(
    r"out of memory|(cublas|cudnn|cusolver|cusparse)_status_\w*alloc\w*_failed"
    r"|cublas_status_not_initialized when calling `?cublascreate",  # which allocates
    re.IGNORECASE,
)
_REFUSAL = re.compile(
    r"(cublas|cusolver)_status_(not_supported|invalid_value|arch_mismatch)|cudnn_status_(not_supported|bad_param)"
    r"|cuda error: invalid (configuration )?argument",
    re.IGNORECASE,
)
"""What a library does not do for these sizes or types; the GPU is none the worse."""
_FAULT = re.compile(
    r"cuda (driver )?error|device-side assert|unspecified launch failure|nccl (remote |system )?error"
    r"|(cublas|cudnn|cusolver|cusparse)_status_(execution_failed|internal_error|mapping_error|not_initialized)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Properties:
    """What a GPU is, as its driver describes it."""

    name: str
    memory: int
    """Bytes."""
    multiprocessors: int
    double_rate: float
    """Rate of float64 relative to float32."""


def count() -> int:
    """Return the number of GPUs."""
    return int(_module().device_count())


def current() -> torch.device:
    """Return the GPU that this process has selected; the first if it has selected none."""
    return torch.device(ACCELERATOR, int(_module().current_device()) if _module().is_initialized() else 0)


def numbered(index: int) -> torch.device:
    """Return the GPU of an index."""
    return torch.device(ACCELERATOR, index)


def name(device: torch.device) -> str:
    """Return the name of a device in options and reports: cpu or cuda:N."""
    return f"cuda:{device.index or 0}" if is_gpu(device) else device.type


def select(device: torch.device) -> None:
    """Make a GPU the current one of this process."""
    _module().set_device(device)


def is_gpu(device: torch.device) -> bool:
    """Return True for a device whose memory is not the CPU's."""
    return device.type == ACCELERATOR


def properties(device: torch.device) -> Properties:
    """Return what a GPU is."""
    found = _module().get_device_properties(device)
    rate = DOUBLE.get((found.major, found.minor), DOUBLE_OTHERS)
    return Properties(str(found.name), int(found.total_memory), int(found.multi_processor_count), rate)


def processor(device: torch.device) -> str:
    """Return what computes on a device: a GPU's name, or the CPU's with the instructions that torch uses of it."""
    if is_gpu(device):
        return properties(device).name
    model = platform.machine()
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        model = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), model)
    return f"{model}, {torch.backends.cpu.get_cpu_capability()}"[:_LONGEST]


def release(device: torch.device) -> None:
    """Return memory to a GPU that torch keeps for later."""
    if is_gpu(device):
        _module().empty_cache()


def synchronise(device: torch.device) -> None:
    """Wait until a GPU has done all that it was given; nothing for a CPU."""
    if is_gpu(device):
        _module().synchronize(device)


def _module() -> Any:
    return torch.get_device_module(ACCELERATOR)


def ran_out(error: BaseException) -> bool:
    """Return True if an error says that a GPU's memory ran out."""
    return isinstance(error, torch.OutOfMemoryError) or bool(_OUT_OF_MEMORY.search(str(error)))


def lacks(error: BaseException) -> bool:
    """Return True if an error says that a GPU's libraries do not do this, of these sizes or types."""
    return bool(_REFUSAL.search(str(error)))


def has_failed(error: BaseException | None) -> bool:
    """Return True if an error, or what caused it, says that a GPU failed for another reason than memory."""
    seen = 0
    while error is not None and seen < _CAUSES:
        fault = isinstance(error, _ACCELERATOR_ERROR) or (
            isinstance(error, RuntimeError) and bool(_FAULT.search(str(error)))
        )
        if fault and not ran_out(error) and not _REFUSAL.search(str(error)):
            return True
        error, seen = error.__cause__, seen + 1
    return False


def failure(error: BaseException) -> ResourceError:
    """Return the error with a code for one that ``has_failed``."""
    cause: BaseException | None = error
    while cause is not None and not (isinstance(cause, RuntimeError) and has_failed(cause)):
        cause = cause.__cause__
    lines = str(cause or error).splitlines()
    return ResourceError(
        f"the device failed: {next(filter(_FAULT.search, lines), first_line(cause or error))[:_LONGEST]}",
        code="device_failed",
        advice="Try again in another process or on another device; if it persists, look into the driver's log (dmesg).",
    )


@contextmanager
def faults_as_errors() -> Iterator[None]:
    """Convert faults of GPUs.

    Raises:
        ResourceError: ``device_failed``.
    """
    try:
        yield
    except Exception as error:
        if has_failed(error) and getattr(error, "code", None) != "device_failed":
            raise failure(error) from error
        raise


_CAUSES, _LONGEST = 8, 300
"""Most errors of a chain of causes that are examined, and characters of a driver's message that are kept."""
_ACCELERATOR_ERROR: tuple[type[BaseException], ...] = tuple(
    kind for kind in (getattr(torch, "AcceleratorError", None),) if kind is not None
)
