"""λ_max of a transformer of a billion parameters, from three vectors; of fewer where memory does not hold them."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from findings import Finding, short
from machine import Machine
from networks import CLASSES, Encoder

import wsb_engine as wsb
from wsb_engine import devices

WIDTH, HEADS, LAYERS, TOKENS, LENGTH, SAMPLES, STEPS = 2048, 16, 20, 1000, 64, 8, 20
BYTES = 96
"""Bytes for each parameter: the model twice, vectors of the run and of the product in float32 and float64."""
PRODUCTS = 30


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
    P = sum(tensor.numel() for tensor in classifier.parameters.values())
    options = wsb.Options(
        device=machine.name,
        dtype="float32",
        basis="three_vectors",
        moments="none",
        ends="largest",
        failure_probability=1e-3,
        max_products=PRODUCTS,
        relative_gap=1e-3,
        memory_limit=None if machine.dry else int(0.9 * devices.properties(machine.device).memory),
    )
    machine.peak()
    started = time.perf_counter()
    report = wsb.analyze(classifier, batch, options)
    seconds = time.perf_counter() - started
    part = report.enclosure
    if part is None or part.lambda_max.relative_gap is None:
        told = "; ".join(warning.message for warning in report.warnings)
        yield Finding(f"λ_max of {P:.3g} parameters", f"no enclosure: {told}"[:400], "an enclosure", False)
        return
    found = part.lambda_max
    yield Finding(
        f"λ_max of {P:.3g} parameters",
        f"in [{found.lower:.6g}, {found.upper:.6g}], gap {found.relative_gap:.1e} (δ = 1e-3), "
        f"{part.hessian_vector_products} products, {short(seconds)}, {machine.peak():.0f} GiB",
        "a gap of at most 1 %",
        None if machine.dry else found.relative_gap <= 1e-2,
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
