"""Whether the GPU gives the CPU's numbers, twice the same ones, and honest errors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from findings import Finding
from machine import Machine
from networks import CLASSES, small
from torch import Tensor, nn

import wsb_engine as wsb
from wsb_engine import devices

MODES: dict[str, dict[str, Any]] = {
    "float64": {},
    "dense": {"spectrum": "dense"},
    "float32": {"dtype": "float32", "ends": "largest", "failure_probability": 1e-3, "max_products": 40},
    "three vectors": {"basis": "three_vectors", "moments": "none", "max_products": 40},
}
CLOSE = 1e-9
"""Largest relative difference of q and of eigenvalues in float64."""


def findings(machine: Machine) -> Iterator[Finding]:
    networks = small()
    for name, (module, x) in networks.items():
        for mode, options in MODES.items():
            if not machine.dry or (name, mode) == ("perceptron", "float64"):
                yield _same(machine, name, module.eval(), x, mode, options)
    yield _twice(machine, *networks["perceptron" if machine.dry else "batch norm"])
    if devices.count() > 1:
        yield _split(*networks["encoder"])
    yield _out_of_range(machine, *networks["encoder"])


def _batch(x: Tensor) -> wsb.Batch:
    return wsb.Batch(x, torch.arange(len(x)) % CLASSES)


def _same(machine: Machine, name: str, module: nn.Module, x: Tensor, mode: str, options: dict[str, Any]) -> Finding:
    batch, classifier = _batch(x), wsb.from_module(module)
    here = wsb.analyze(classifier, batch, wsb.Options(device="cpu", **options))
    there = wsb.analyze(classifier, batch, wsb.Options(device=machine.name, **options))
    assert here.enclosure is not None
    assert there.enclosure is not None
    ours, theirs = there.enclosure.lambda_max, here.enclosure.lambda_max
    meets = ours.lower <= theirs.upper * (1 + 1e-12) and theirs.lower <= ours.upper * (1 + 1e-12)
    off = 0.0
    if mode != "float32" and here.moments is not None and there.moments is not None:
        off = abs(there.moments.frobenius_squared / here.moments.frobenius_squared - 1)
    if here.spectrum is not None and there.spectrum is not None:
        pairs = zip(there.spectrum.eigenvalues, here.spectrum.eigenvalues, strict=True)
        off = max(off, max(abs(a - b) for a, b in pairs) / abs(here.spectrum.eigenvalues[0]))
    failed = [check.name for check in there.checks if not check.passed]
    told = f"λ_max in [{ours.lower:.6g}, {ours.upper:.6g}], the CPU's in [{theirs.lower:.6g}, {theirs.upper:.6g}]"
    told += f", off by {off:.0e}" + (f", failed: {', '.join(failed)}" if failed else "")
    return Finding(f"{name}, {mode}", told, "intervals meet, checks pass", meets and off <= CLOSE and not failed)


def _twice(machine: Machine, module: nn.Module, x: Tensor) -> Finding:
    options = wsb.Options(device=machine.name, moments="none", max_products=20)
    first, second = (wsb.analyze(wsb.from_module(module), _batch(x), options) for _ in range(2))
    same = first.model_dump(exclude={"timings"}) == second.model_dump(exclude={"timings"})
    named = [warning.message for warning in first.warnings if warning.code == "not_deterministic"]
    told = "the same bits" if same else "other bits"
    return Finding("convolutions twice", "; ".join([told, *named]), "the same, or a warning", same or bool(named))


def _split(module: nn.Module, x: Tensor) -> Finding:
    options = {"moments": "none", "max_products": 20}
    one = wsb.analyze(wsb.from_module(module), _batch(x), wsb.Options(device="cuda:0", **options))
    all_of_them = wsb.analyze(wsb.from_module(module), _batch(x), wsb.Options(devices="all", **options))
    assert one.enclosure is not None
    assert all_of_them.enclosure is not None
    off = abs(all_of_them.enclosure.lambda_max.upper / one.enclosure.lambda_max.upper - 1)
    return Finding(f"{devices.count()} GPUs beside one", f"off by {off:.0e}", f"at most {CLOSE:g}", off <= CLOSE)


def _out_of_range(machine: Machine, module: nn.Module, x: Tensor) -> Finding:
    wrong = x.clone()
    wrong[-1, 0] = 1000
    try:
        wsb.analyze(wsb.from_module(module), _batch(wrong), wsb.Options(device=machine.name))
        told = "accepted"
    except (IndexError, wsb.EngineError) as error:
        told = f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"
    alive = bool(torch.ones(1, device=machine.device) == 1)
    right = told != "accepted" and "device_failed" not in told and alive
    return Finding("a token beyond the embedding", told, "refused, and the GPU goes on", right)
