"""Compare a certified λ_max with what eigensolvers of public tools find without a certificate.

    ./scripts/peers && PYTHONPATH=.peers .venv/bin/python benchmarks/peers.py [--only small|resnet18]

Small networks are compared in float64 with hessian-eigenthings at its default tolerance, in turns. ResNet-18 is
compared in float32 with curvlinops and hessian-eigenthings at the same relative residual, each tool in a separate
process, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import runpy
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from harness import Row, alternate, duration, end_with_what_was_started, ratio, show
from scale import GIB, peak_bytes
from scale_models import CASES, Case, images
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import wsb

Result = TypeVar("Result")
DEMO = Path(__file__).parents[1] / "scripts" / "demo.py"
GAP = 1e-6
"""Relative gap of λ_max for small networks."""
TOLERANCE = 1e-4
"""Relative residual at which hessian-eigenthings stops by default, and largest distance from its value to ours."""
FASTER = 1.5
"""How many times faster than hessian-eigenthings a certificate for a small network must be."""
RESIDUAL = 1e-2
"""‖Hx − θx‖ / |θ| that eigensolvers reach for ResNet-18, and the relative gap of our certificate."""
MOST_STEPS = 300
"""Most steps of Lanczos that are tried, as many as an analysis takes by default."""
FIRST_STEPS = 16
"""Steps of the first run that looks for the number that is needed; each further run doubles them."""
REORTHOGONALIZED = 50
"""Most steps up to which hessian-eigenthings reorthogonalizes by default."""
SEED = 0


@dataclass(frozen=True)
class Posed:
    """A network in evaluation mode and a batch, both in one precision."""

    module: nn.Module
    x: Tensor
    y: Tensor

    @classmethod
    def of(cls, case: Case, dtype: torch.dtype) -> Posed:
        batch = case.batch()
        return cls.cast(case.module(), batch.x["x"], torch.from_numpy(batch.y), dtype)

    @classmethod
    def cast(cls, module: nn.Module, x: Tensor, y: Tensor, dtype: torch.dtype) -> Posed:
        """Change the precision of everything but tokens and labels."""
        return cls(module.to(dtype).eval(), x.to(dtype) if x.is_floating_point() else x, y)

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.module.parameters())

    def __str__(self) -> str:
        return f"P = {self.parameters:,}, N = {len(self.y):,}"


@dataclass(frozen=True)
class Found:
    """What one tool found, and what that took."""

    value: float
    """A Ritz value, or the lower end of a certificate."""
    accuracy: str
    products: int
    seconds: float
    before: int
    """Peak memory before it began, in bytes."""
    bytes: int
    """Peak memory afterwards."""

    def __str__(self) -> str:
        memory = f"{self.bytes / GIB:.2f} GiB ({self.before / GIB:.2f} before)"
        return f"{self.value:.6g}, {self.accuracy}: {self.seconds:.3g} s, {self.products} products, {memory}"


def demo() -> Posed:
    """Train the demo's network; return it with the demo's held-out batch."""
    module, x, y, _ = runpy.run_path(str(DEMO))["train"]()
    return Posed.cast(module, torch.from_numpy(x), torch.from_numpy(y), torch.float64)


def small_cases() -> Iterator[tuple[str, Posed]]:
    yield "the demo's 64-32-10", demo()
    for name in ("conv_net", "small_encoder"):
        yield name, Posed.of(CASES[name], torch.float64)


def hessian(posed: Posed) -> Any:
    """Return the Hessian as an operator of hessian-eigenthings."""
    from hessian_eigenthings import (  # type: ignore[import-not-found,unused-ignore]
        HessianOperator,
        supervised_loss,
    )

    # Tokens and labels are integers, which it passes on as they are.
    return HessianOperator(posed.module, [(posed.x, posed.y)], supervised_loss(nn.functional.cross_entropy))


def lanczos(operator: Any, steps: int, tolerance: float) -> Any:
    """Run hessian-eigenthings."""
    import hessian_eigenthings

    # torch cannot differentiate its fused attention twice on a CPU.
    with sdpa_kernel(SDPBackend.MATH):
        return hessian_eigenthings.lanczos(operator, k=1, max_iter=steps, tol=tolerance, which="LA", seed=SEED)


def enough(posed: Posed, tolerance: float) -> int:
    """Return a number of steps after which hessian-eigenthings says that it has converged, the least up to rounding.

    It takes a fixed number of steps, two by default. A longer run begins as a shorter one.

    Raises:
        RuntimeError: if ``MOST_STEPS`` are not enough.
    """
    from hessian_eigenthings import lanczos_tridiagonal

    operator, most = hessian(posed), min(MOST_STEPS, posed.parameters)
    start = torch.randn(operator.size, dtype=operator.dtype, generator=torch.Generator().manual_seed(SEED))
    tried = 0
    while tried < most:
        begun, tried = tried, min(2 * tried or FIRST_STEPS, most)
        with sdpa_kernel(SDPBackend.MATH):
            run = lanczos_tridiagonal(operator, start, tried, reorthogonalize=tried <= REORTHOGONALIZED)
        T = torch.diag(run.alphas) + torch.diag(run.betas, 1) + torch.diag(run.betas, -1)
        for steps in range(begun + 1, run.iterations + 1):
            values, vectors = torch.linalg.eigh(T[:steps, :steps])
            left = run.last_beta if steps == run.iterations else float(run.betas[steps - 1])
            near = left * abs(float(vectors[-1, -1])) < tolerance * abs(float(values[-1]))
            # Its own word counts.
            if near and bool(lanczos(operator, steps, tolerance).converged.all()):
                return steps
    raise RuntimeError(f"not converged after {most} steps")


def versus(name: str, posed: Posed, *, repeats: int = 7) -> Iterator[Row]:
    """Compare seconds and products for λ_max; a row says if the other tool cannot do it."""
    classifier, batch = wsb.from_module(posed.module), wsb.Batch(posed.x, posed.y.numpy())
    options = wsb.Options(moments="none", ends="largest", relative_gap=GAP, dtype="float64", device="cpu")
    title = f"λ_max of {name}, {posed}, to {GAP:g}"

    def ours() -> wsb.Report:
        return wsb.analyze(classifier, batch, options)

    report = ours()
    assert report.enclosure is not None
    end, products = report.enclosure.lambda_max, sum((report.products or {}).values())
    certificate = f"gap {end.relative_gap or 0:.0e}, {products} products"
    try:
        steps = enough(posed, TOLERANCE)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        yield Row(title, f"certified: {certificate}; hessian-eigenthings cannot: {reason}", "", None)
        return

    def theirs() -> float:
        return float(lanczos(hessian(posed), steps, TOLERANCE).eigenvalues[0])

    value = theirs()
    agree = abs(value - end.lower) <= TOLERANCE * abs(value)
    seconds = alternate({"ours": ours, "theirs": theirs}, repeats=repeats)
    faster = ratio(seconds, "ours", "theirs")
    yield Row(
        title,
        f"certified in {duration(seconds['ours'])} ({certificate}), "
        f"hessian-eigenthings, uncertified, {steps} steps: {duration(seconds['theirs'])}: {faster:.2f} ×"
        + ("" if agree else f"; it found {value:.6g}, not from {end.lower:.6g} to {end.upper:.6g}"),
        f"at least {FASTER:g} ×",
        agree and faster >= FASTER,
    )


def small(*, repeats: int = 7) -> Iterator[Row]:
    for name, posed in small_cases():
        yield from versus(name, posed, repeats=repeats)


def resnet(size: int, samples: int) -> Posed:
    return Posed.of(replace(CASES["resnet18"], inputs=images(3, size), samples=samples), torch.float32)


def found_by_us(size: int, samples: int) -> Found:
    """Certify λ_max to a relative gap of ``RESIDUAL``."""
    posed = resnet(size, samples)
    batch = wsb.Batch(posed.x, posed.y.numpy())
    options = wsb.Options(
        dtype="float32",
        moments="none",
        ends="largest",
        relative_gap=RESIDUAL,
        failure_probability=1e-3,
        device="cpu",
    )
    before, started = peak_bytes(), time.perf_counter()
    report = wsb.analyze(wsb.from_module(posed.module), batch, options)
    seconds, held = time.perf_counter() - started, peak_bytes()
    assert report.enclosure is not None
    end = report.enclosure.lambda_max
    gap = "no gap" if end.relative_gap is None else f"gap {end.relative_gap:.1e}"
    accuracy = f"certified up to {end.upper:.6g}, {gap}, {report.enclosure.stopped_by}"
    return Found(end.lower, accuracy, sum((report.products or {}).values()), seconds, before, held)


def found_by_curvlinops(size: int, samples: int) -> Found:
    """Run SciPy's eigensolver on its Hessian; it stops at the relative residual ``tol``."""
    from curvlinops import HessianLinearOperator  # type: ignore[import-not-found,unused-ignore]
    from scipy.sparse.linalg import LinearOperator, eigsh  # type: ignore[import-untyped,unused-ignore]

    posed = resnet(size, samples)
    products = 0

    def product(v: np.ndarray) -> Any:
        nonlocal products
        products += 1
        return multiplied.matvec(v)

    start = np.random.default_rng(0).standard_normal(posed.parameters).astype(np.float32)
    before, started = peak_bytes(), time.perf_counter()
    operator = HessianLinearOperator(
        posed.module,
        nn.CrossEntropyLoss(),
        list(posed.module.parameters()),
        [(posed.x, posed.y)],
        check_deterministic=False,
    )
    multiplied = operator.to_scipy(np.float32)
    counted = LinearOperator(multiplied.shape, matvec=product, dtype=np.float32)
    values, vectors = eigsh(counted, k=1, which="LA", tol=RESIDUAL, v0=start)
    seconds, held, taken = time.perf_counter() - started, peak_bytes(), products
    value, vector = float(values[0]), vectors[:, 0]
    accuracy = residual(torch.from_numpy(multiplied.matvec(vector)), value, torch.from_numpy(vector))
    return Found(value, accuracy, taken, seconds, before, held)


def found_by_eigenthings(size: int, samples: int, steps: int) -> Found:
    """Run the Lanczos method of hessian-eigenthings, which reaches the relative residual ``tol`` after these steps."""
    posed = resnet(size, samples)
    before, started = peak_bytes(), time.perf_counter()
    operator = hessian(posed)
    result = lanczos(operator, steps, RESIDUAL)
    seconds, held = time.perf_counter() - started, peak_bytes()
    value, vector = float(result.eigenvalues[0]), result.eigenvectors[0]
    return Found(value, residual(operator.matvec(vector), value, vector), result.iterations, seconds, before, held)


def residual(image: Tensor, value: float, vector: Tensor) -> str:
    """Return the residual of a Ritz pair relative to its value, in words."""
    distance = torch.linalg.vector_norm(image - value * vector) / torch.linalg.vector_norm(vector)
    return f"residual {float(distance) / abs(value):.1e}"


def steps_of(size: int, samples: int) -> int:
    return enough(resnet(size, samples), RESIDUAL)


def alone(function: Callable[..., Result], *arguments: object) -> Result:
    """Call a function of this module in a separate process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as apart_from_others:
        return apart_from_others.submit(function, *arguments).result()


def resnet18(*, size: int = 64, samples: int = 64) -> Iterator[Row]:
    """Compare three tools at one relative residual; seconds include what each does before its first product."""
    title, found = f"λ_max of resnet18, N = {samples}, {size} × {size}, float32", dict[str, Found]()
    tools: dict[str, Callable[[], Found]] = {
        "ours": lambda: alone(found_by_us, size, samples),
        "curvlinops": lambda: alone(found_by_curvlinops, size, samples),
        "hessian-eigenthings": lambda: alone(found_by_eigenthings, size, samples, alone(steps_of, size, samples)),
    }
    for tool, find in tools.items():
        try:
            found[tool] = find()
        except (BrokenExecutor, ImportError, MemoryError, RuntimeError) as error:
            yield Row(f"{title}: {tool}", f"cannot: {str(error).splitlines()[0]}", "", None)
        else:
            yield Row(f"{title}: {tool}", str(found[tool]), "", None)
    values = [each.value for each in found.values()]
    spread = (max(values) - min(values)) / abs(max(values)) if values else math.inf
    yield Row(
        f"{title}: values of {', '.join(found)}",
        f"{spread:.1e} apart",
        f"at most {2 * RESIDUAL:g} apart, by all tools",
        len(found) == len(tools) and spread <= 2 * RESIDUAL,
    )


PARTS: dict[str, Callable[[], Iterator[Row]]] = {"small": small, "resnet18": resnet18}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=PARTS)
    only = parser.parse_args().only
    end_with_what_was_started()
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    return int(not show(row for part in ([only] if only else PARTS) for row in PARTS[part]()))


if __name__ == "__main__":
    raise SystemExit(main())
