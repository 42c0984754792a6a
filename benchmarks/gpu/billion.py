"""λ_max of a transformer of a billion parameters from three vectors, in float32 and in float64.

There are fewer parameters where memory does not hold a billion.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from findings import Finding, short
from machine import Machine
from networks import CLASSES, Encoder

import wsb_engine as wsb
from wsb_engine import devices

WIDTH, HEADS, LAYERS, TOKENS, LENGTH, SAMPLES, STEPS = 2048, 16, 20, 1000, 64, 8, 20
BYTES = 70
"""Most bytes for each parameter that an analysis holds, the model included: as tests/engine/test_devices.py counts, and
some for intermediates."""
PRODUCTS = 30
PRECISIONS: dict[str, dict[str, Any]] = {
    "float32": {"failure_probability": 1e-3, "relative_gap": 1e-3},
    "float64": {"relative_gap": 1e-6},
}
"""Options by dtype: what its rounding lets a run of three vectors reach."""
TARGETS = {"float32": (1e-2, 15.0, 32.0), "float64": (1e-4, 45.0, 64.0)}
"""Largest gap, seconds and GiB for a billion parameters."""


def findings(machine: Machine) -> Iterator[Finding]:
    layers = 1 if machine.dry else _layers()
    if not layers:
        yield Finding("a large transformer", "this GPU's memory holds not one layer of it")
        return
    torch.manual_seed(0)
    with machine.device:
        module = Encoder(
            tokens=machine.of(TOKENS, 20),
            length=machine.of(LENGTH, 4),
            width=machine.of(WIDTH, 8),
            heads=machine.of(HEADS, 2),
            layers=layers,
        )
    x = torch.randint(0, machine.of(TOKENS, 20), (machine.of(SAMPLES, 3), machine.of(LENGTH, 4)))
    y = torch.arange(len(x)) % CLASSES
    _train(module, x.to(machine.device), y.to(machine.device), machine.of(STEPS, 1))
    classifier, batch = wsb.from_module(module.eval()), wsb.Batch(x, y)
    del module
    for dtype in PRECISIONS:
        yield from _enclosed(machine, classifier, batch, dtype)


def _enclosed(machine: Machine, classifier: wsb.Classifier, batch: wsb.Batch, dtype: str) -> Iterator[Finding]:
    P = sum(tensor.numel() for tensor in classifier.parameters.values())
    name, (gap, seconds, memory) = f"λ_max of {P:.3g} parameters in {dtype}", TARGETS[dtype]
    options = wsb.Options(
        device=machine.name,
        dtype=dtype,
        basis="three_vectors",
        moments="none",
        ends="largest",
        max_products=PRODUCTS,
        memory_limit=None if machine.dry else int(memory * P / 1e9 * 2**30),
        **PRECISIONS[dtype],
    )
    machine.peak()
    started = time.perf_counter()
    report = wsb.analyze(classifier, batch, options)
    took, held, part = time.perf_counter() - started, machine.peak(), report.enclosure
    if part is None or part.lambda_max.relative_gap is None:
        told = "; ".join(warning.message for warning in report.warnings)
        yield Finding(name, f"no enclosure: {told}"[:400], "an enclosure", False)
        return
    found, share = part.lambda_max, P / 1e9
    met = found.relative_gap <= gap and took <= seconds * share and held <= memory * share
    yield Finding(
        name,
        f"in [{found.lower:.6g}, {found.upper:.6g}], gap {found.relative_gap:.1e} (δ = "
        f"{options.failure_probability:.0e}), {part.hessian_vector_products} products, {short(took)}, {held:.0f} GiB",
        f"a gap of at most {gap:.0e} in {seconds * share:.0f} s and {memory * share:.0f} GiB",
        None if machine.dry else met,
    )


def _layers() -> int:
    memory = devices.properties(devices.current()).memory
    parameters = memory / BYTES - 2 * TOKENS * WIDTH
    return max(0, min(LAYERS, int(parameters / (12 * WIDTH**2))))


def _train(module: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, steps: int) -> None:
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(x), y).backward()
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
