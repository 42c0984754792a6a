"""Products and exact moments beside curvlinops, λ_max beside hessian-eigenthings, and the memory of products."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from findings import Finding, short
from machine import Machine
from networks import CLASSES, Encoder, perceptron, residual
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import wsb_engine as wsb
from wsb_engine import devices
from wsb_engine.analysis.monitor import Monitor
from wsb_engine.analysis.problem import pose
from wsb_engine.arithmetic import exact

BLOCK, PROBES, FASTER = 16, 64, 2.0
"""Columns of a block, probes that measure an estimator's spread, and how many times faster products must be."""
FIRST = 2.0
"""Seconds that the first product may take, with all that it imports and traces."""
MOMENTS = {1000: 50.0, 50_000: 5.0}
"""Samples → how many times faster exact q must be than an estimate to 1 %."""
CLOSE = 1e-3
"""Largest relative difference of two ways to compute a product in float32."""


def findings(machine: Machine) -> Iterator[Finding]:
    with exact(gpus=not machine.dry):
        for name, module, x in _cases(machine):
            yield from _product(machine, name, module.eval(), x)
        for samples, faster in MOMENTS.items():
            yield from _moments(machine, samples, faster)
        yield from _largest(machine)


def _cases(machine: Machine) -> Iterator[tuple[str, nn.Module, Tensor]]:
    torch.manual_seed(0)
    widths = (784, 128, CLASSES) if not machine.dry else (12, 8, CLASSES)
    samples = machine.of(50_000, 20)
    yield f"{'-'.join(map(str, widths))}, N = {samples}", perceptron(*widths), torch.rand(samples, widths[0])
    width, side, count = machine.of(64, 4), machine.of(224, 32), machine.of(64, 3)
    yield f"residual network, N = {count}", residual(width, machine.of(2, 1)), torch.randn(count, 3, side, side)
    sizes = {"tokens": 30_522, "length": 128, "width": 768, "heads": 12, "layers": 12}
    if machine.dry:
        sizes = {"tokens": 30, "length": 5, "width": 8, "heads": 2, "layers": 1}
    count = machine.of(16, 3)
    yield (
        f"encoder of {sizes['layers']} layers, N = {count}",
        Encoder(**sizes),
        torch.randint(0, sizes["tokens"], (count, sizes["length"])),
    )


def _peer(module: nn.Module, x: Tensor, y: Tensor) -> Callable[[Tensor], Tensor] | None:
    try:
        from curvlinops import HessianLinearOperator
    except ImportError:
        return None
    parameters = list(module.parameters())
    operator = HessianLinearOperator(module, nn.CrossEntropyLoss(), parameters, [(x, y)], check_deterministic=False)

    def product(V: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
            image: Tensor = operator @ V
        return image

    return product


def _product(machine: Machine, name: str, module: nn.Module, x: Tensor) -> Iterator[Finding]:
    module = module.to(machine.device)
    y = torch.arange(len(x)) % CLASSES
    options = wsb.Options(dtype="float32", device=machine.name)
    machine.peak()
    problem = pose(wsb.from_module(module), wsb.Batch(x, y), options, Monitor(options, None, 0.0))
    product = problem.hessian_product(columns=1)
    P = problem.objective.parameters
    v = torch.randn(P, device=machine.device)
    started = time.perf_counter()
    product.vector(v)
    devices.synchronise(machine.device)
    first = time.perf_counter() - started
    yield Finding(
        f"the first product, {name}", short(first), f"at most {FIRST:g} s", None if machine.dry else first <= FIRST
    )
    ours = machine.seconds(lambda: product.vector(v))
    peak = machine.peak()
    peer = _peer(module, x.to(machine.device), y.to(machine.device))
    image, twice = product.vector(v), problem.objective.twice_backward(v)
    off = float((image - twice).norm() / twice.norm())
    told = f"off by {off:.0e}"
    yield Finding(f"a product by double backward, {name}", told, f"at most {CLOSE:g}", off <= CLOSE)
    told = f"P = {P:.3g}: {short(ours)} by {product.description}, {peak:.1f} GiB"
    if peer is None:
        yield Finding(f"a product, {name}", f"{told}; curvlinops is not installed")
        return
    theirs = machine.seconds(lambda: peer(v))
    differs, faster = float((peer(v).double() - twice).norm() / twice.norm()), theirs / ours
    told += f"; curvlinops {short(theirs)}, off by {differs:.0e}: {faster:.1f} ×"
    yield Finding(f"a product, {name}", told, f"at least {FASTER:g} ×", None if machine.dry else faster >= FASTER)


def _moments(machine: Machine, samples: int, faster: float) -> Iterator[Finding]:
    torch.manual_seed(0)
    widths = (784, 128, CLASSES) if not machine.dry else (12, 8, CLASSES)
    samples = machine.of(samples, 20)
    module, x = perceptron(*widths).to(machine.device), torch.rand(samples, widths[0])
    y = torch.arange(samples) % CLASSES
    classifier, batch = wsb.from_module(module), wsb.Batch(x, y)
    found = {}
    for dtype in ("float64", "float32"):
        options = wsb.Options(device=machine.name, dtype=dtype, enclosure=False, moments="closed_form")
        runs = [wsb.analyze(classifier, batch, options) for _ in range(machine.of(4, 1))]
        moments = runs[-1].moments
        assert moments is not None
        found[dtype] = moments.frobenius_squared
        seconds = min(run.timings["moments"] for run in runs)
        yield Finding(f"exact q in {dtype}, N = {samples}", f"{found[dtype]:.9g} in {short(seconds)}")
    off = abs(found["float32"] / found["float64"] - 1)
    yield Finding(f"q in float32 beside float64, N = {samples}", f"off by {off:.0e}", "at most 1e-5", off <= 1e-5)
    peer = _peer(module, x.to(machine.device), y.to(machine.device))
    if peer is None:
        return
    P = sum(tensor.numel() for tensor in module.parameters())
    Z = torch.randint(0, 2, (P, BLOCK), device=machine.device).float().mul_(2).sub_(1)
    squares = [
        float(square)
        for _ in range(PROBES // BLOCK)
        for square in peer(Z[torch.randperm(P, device=machine.device)]).double().square().sum(dim=0)
    ]
    needed = (statistics.stdev(squares) / (0.01 * found["float64"])) ** 2
    theirs = needed * machine.seconds(lambda: peer(Z)) / BLOCK
    yield Finding(
        f"q beside curvlinops' estimator at 1 %, N = {samples}",
        f"{needed:.0f} products, {short(theirs)}: {theirs / seconds:.1f} ×",
        f"at least {faster:g} ×",
        None if machine.dry else theirs >= faster * seconds,
    )


def _largest(machine: Machine) -> Iterator[Finding]:
    try:
        from hessian_eigenthings import HessianOperator, lanczos, supervised_loss
    except ImportError:
        return
    torch.manual_seed(0)
    widths, samples = ((64, 128, 64, CLASSES), 1797) if not machine.dry else ((6, 5, CLASSES), 20)
    module = perceptron(*widths).double().to(machine.device)
    x, y = torch.rand(samples, widths[0], dtype=torch.float64), torch.arange(samples) % CLASSES
    loader = [(x.to(machine.device), y.to(machine.device))]
    options = wsb.Options(device=machine.name, moments="none", ends="largest", dtype="float64")
    classifier, batch = wsb.from_module(module), wsb.Batch(x, y)
    ours = machine.seconds(lambda: wsb.analyze(classifier, batch, options))
    report = wsb.analyze(classifier, batch, options)
    assert report.enclosure is not None
    steps = report.enclosure.hessian_vector_products

    def theirs() -> float:
        operator = HessianOperator(module, loader, supervised_loss(nn.functional.cross_entropy))
        found = lanczos(operator, k=1, max_iter=steps, tol=1e-6, which="LA", seed=0)
        return float(found.eigenvalues[0])

    value, upper = theirs(), report.enclosure.lambda_max.upper
    yield Finding(
        "λ_max to 1e-6 beside hessian-eigenthings",
        f"certified in {short(ours)}, {steps} steps uncertified in {short(machine.seconds(theirs))}",
        "its value is not above our bound",
        math.isfinite(value) and value <= upper * (1 + 1e-6),
    )
