"""Models of the sizes that people ship: seconds, ratio to a gradient of the same model, and peak memory.

    .venv/bin/python benchmarks/scale.py [--only ROW …]

Each row runs in a separate process, so that its peak memory is that of the row. A row is a function of this module
that yields rows; ``ROWS`` names them.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import re
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import Curve, Row, apart, end_with_what_was_started, show, slope
from scale_models import CASES, mlp

import wsb
from wsb_engine.analysis.monitor import Monitor
from wsb_engine.analysis.problem import Problem, pose

GIB = 1 << 30
PRODUCTS = 2
"""Products that are timed after the first."""
LARGEST_RATIO = 4.0
"""Time of a product relative to a gradient's."""
LARGEST_SLOPE = 1.05
LARGEST_SHARE = 8.0
"""Time of an analysis relative to its products' number times a gradient's time."""
LARGEST_DEFAULT = 1.5
"""Time of a default analysis relative to one without moments."""


@dataclass(frozen=True)
class Goal:
    """What an analysis must reach."""

    gap: float
    gib: float
    products: int = 300

    @property
    def options(self) -> dict[str, Any]:
        """Options of an analysis that is to reach it."""
        return {"relative_gap": self.gap, "ends": "largest"}


GOALS = {
    "resnet18": Goal(gap=1e-3, gib=6, products=60),
    "distilbert": Goal(gap=1e-2, gib=8),
    "vit_b": Goal(gap=1e-2, gib=10),
}
PRECISIONS: dict[str, dict[str, Any]] = {
    "float64": {"dtype": "float64"},
    "float32": {"dtype": "float32", "failure_probability": 1e-3},
}
"""Options for products in either precision: float32 does not carry the default failure probability."""
PRODUCT_MEMORY = {"distilbert": 8.0, "vit_b": 10.0}
"""Largest peak of a process that multiplies once, in GiB."""
SAMPLES = (1_000, 10_000, 100_000, 1_000_000)
WIDTHS = (20, 65, 204, 645, 2_041)
"""Widths of the hidden layers of an MLP with 10⁴ to 10⁸ parameters."""
FITTED = 3
"""Number of last points to which a slope is fitted."""
SAMPLING_SECONDS = 0.01
"""Seconds between two looks at the memory."""


def peak_bytes() -> int:
    """Return the largest resident memory that this process has had, mapped files included."""
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) << 10


def resident_bytes() -> int:
    """Return the resident memory that belongs to this process alone, without mapped files."""
    found = re.search(r"RssAnon:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) << 10


def posed(classifier: wsb.Classifier, batch: wsb.Batch, options: wsb.Options) -> Problem:
    return pose(classifier, batch, options, Monitor(options, None, 0.0))


def timed(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def product_of(name: str, **options: object) -> Iterator[Row]:
    """Time products of a model beside its gradient."""
    case = CASES[name]
    chosen = wsb.Options.model_validate({"dtype": "float64", "device": "cpu", **options})
    started = time.perf_counter()
    problem = posed(case.classifier(), case.batch(), chosen)
    setup, after_setup = time.perf_counter() - started, peak_bytes()
    gradient = timed(problem.objective.gradient)
    product = problem.hessian_product(columns=1)
    v = torch.ones(product.parameters, dtype=product.dtype)
    first = timed(lambda: product.vector(v))
    rest = min(timed(lambda: product.vector(v)) for _ in range(PRODUCTS))
    ratio, held, most = rest / gradient, peak_bytes() / GIB, PRODUCT_MEMORY.get(name)
    yield Row(
        f"{name}, P = {product.parameters:,}, N = {problem.samples}: one product",
        f"{rest:.3g} s = {ratio:.2f} gradients ({product.description})",
        f"at most {LARGEST_RATIO:g}",
        ratio <= LARGEST_RATIO,
    )
    yield Row(f"{name}: before it", f"setup {setup:.3g} s, gradient {gradient:.3g} s, first {first:.3g} s", "", None)
    yield Row(
        f"{name}: peak memory",
        f"{held:.2f} GiB, {after_setup / GIB:.2f} after setup",
        "" if most is None else f"at most {most:g} GiB",
        None if most is None else held <= most,
    )


def analysis_of(name: str, goal: Goal, **options: object) -> Iterator[Row]:
    """Run one analysis, and print what was certified beside the goal."""
    case = CASES[name]
    chosen = wsb.Options.model_validate({"device": "cpu", **goal.options, **options})
    classifier, batch = case.classifier(), case.batch()
    gradient = timed(posed(classifier, batch, chosen).objective.gradient)
    report, seconds = analysed(classifier, batch, chosen)
    end, modelled, counted = report.enclosure.lambda_max, report.enclosure.modelled, report.products or {}
    products, gap, held = counted["enclosure"], end.relative_gap, peak_bytes() / GIB
    yield Row(
        f"{name}: λ_max from {report.enclosure.basis}, {report.engine.dtype}, δ = {end.failure_probability or 0:.2g}",
        f"{end.lower:.6g} to {end.upper:.6g}, gap {gap:.2g}, {report.enclosure.stopped_by}"
        + ("" if modelled is None else f"; modelled: up to {modelled.upper:.6g}"),
        f"gap at most {goal.gap:g}",
        gap is not None and gap <= goal.gap,
    )
    yield Row(
        f"{name}: products, gradient {gradient:.3g} s",
        f"{products} of them ({report.enclosure.hessian_vector_products} steps), {counted['rounding']} for rounding",
        f"at most {goal.products}",
        products <= goal.products,
    )
    ratio = seconds / (sum(counted.values()) * gradient)
    yield Row(
        f"{name}: time", f"{seconds:.3g} s = {ratio:.2f} products × gradient", f"at most {LARGEST_SHARE:g}",
        ratio <= LARGEST_SHARE,
    )  # fmt: skip
    yield Row(f"{name}: peak memory", f"{held:.2f} GiB", f"at most {goal.gib:g} GiB", held <= goal.gib)


def analysed(classifier: wsb.Classifier, batch: wsb.Batch, options: wsb.Options) -> tuple[Any, float]:
    """Return a report with an enclosure, and the seconds that it took."""
    started = time.perf_counter()
    report = wsb.analyze(classifier, batch, options)
    seconds = time.perf_counter() - started
    assert report.enclosure is not None
    return report, seconds


def default_of(name: str) -> Iterator[Row]:
    """Compare a default analysis with one without moments."""
    case, options = CASES[name], wsb.Options(device="cpu")
    classifier, batch = case.classifier(), case.batch()
    analysed(classifier, case.batch(4), options)
    bare, least = analysed(classifier, batch, options.model_copy(update={"moments": "none"}))
    report, seconds = analysed(classifier, batch, options)
    same = report.enclosure.lambda_max == bare.enclosure.lambda_max
    yield Row(
        f"{name}, default analysis: {report.enclosure.lambda_max.upper:.6g}",
        f"{seconds:.3g} s = {seconds / least:.2f} × that of moments none, {'the same' if same else 'another'} λ_max",
        f"at most {LARGEST_DEFAULT:g}",
        same and seconds <= LARGEST_DEFAULT * least,
    )


def limited(name: str, seconds: float) -> Iterator[Row]:
    """Run out of time; the longest chunk is one in float64, of a product that measures rounding."""
    case = CASES[name]
    classifier, batch = case.classifier(), case.batch()
    problem = posed(classifier, batch, wsb.Options(device="cpu"))
    product = problem.from_scratch(problem.objective.in_double())
    v = torch.ones(product.parameters, dtype=product.dtype)
    product.vector(v)
    chunk = timed(lambda: product.vector(v)) / math.ceil(problem.samples / product.way.samples)  # type: ignore[attr-defined]
    outcome = "an enclosure"
    started = time.perf_counter()
    try:
        wsb.analyze(classifier, batch, wsb.Options(device="cpu", time_limit=seconds))
    except wsb.ResourceError as error:
        outcome = str(error)
    taken = time.perf_counter() - started
    yield Row(
        f"{name}: time_limit = {seconds:g}", f"{taken:.3g} s: {outcome}", f"{seconds:g} s + a chunk ({chunk:.2g} s)",
        taken <= seconds + chunk,
    )  # fmt: skip


class Memory:
    """The largest memory of this process alone inside the block beyond what it held before, sampled by a thread."""

    def __enter__(self) -> Memory:
        self.bytes, self._before, self._over = 0.0, resident_bytes(), threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _sample(self) -> None:
        while True:
            self.bytes = max(self.bytes, float(resident_bytes() - self._before))
            if self._over.wait(SAMPLING_SECONDS):
                return


def streamed(count: int, folder: Path) -> tuple[wsb.Classifier, wsb.Batch]:
    """Return a small MLP and rows that are streamed from a file."""
    write_rows(folder / "batch.npz", count, 784)
    return wsb.from_module(mlp(784, 32, 10)), wsb.load_batch(folder / "batch.npz")


def widened(width: int, _: Path) -> tuple[wsb.Classifier, wsb.Batch]:
    """Return an MLP with 24 width² parameters, and a few samples."""
    module = mlp(4 * width, width * 6, 10)
    return wsb.from_module(module), wsb.Batch(torch.randn(64, 4 * width), np.arange(64) % 10)


@dataclass(frozen=True)
class Growth:
    """What grows, while all else stays fixed."""

    axis: str
    subject: str
    sizes: tuple[int, ...]
    case: Callable[[int, Path], tuple[wsb.Classifier, wsb.Batch]]
    options: wsb.Options


ENCLOSED: dict[str, Any] = {"device": "cpu", "moments": "none", "ends": "largest", "relative_gap": 1e-2}
GROWTHS = {
    "samples": Growth("N", "784-32-10, streamed", SAMPLES, streamed, wsb.Options(memory_limit=256 << 20, **ENCLOSED)),
    "parameters": Growth(
        "P", "N = 64", WIDTHS, widened, wsb.Options(dtype="float64", basis="three_vectors", **ENCLOSED)
    ),
}
Point = tuple[float, float, float]
"""A size, seconds and bytes."""


def product_point(growth: str, size: int) -> Point:
    """Time a product, and measure the memory of posing an analysis and multiplying once."""
    with tempfile.TemporaryDirectory() as folder:
        classifier, batch = GROWTHS[growth].case(size, Path(folder))
        with Memory() as held:
            problem = posed(classifier, batch, GROWTHS[growth].options)
            product = problem.hessian_product(columns=1)
            v = torch.ones(product.parameters, dtype=product.dtype)
            product.vector(v)
        seconds = min(timed(lambda: product.vector(v)) for _ in range(PRODUCTS))
    return product.parameters if growth == "parameters" else problem.samples, seconds, held.bytes


def lambda_max_point(growth: str, size: int) -> Point:
    """Time an analysis that encloses λ_max, by its products, and measure its memory."""
    with tempfile.TemporaryDirectory() as folder:
        classifier, batch = GROWTHS[growth].case(size, Path(folder))
        with Memory() as held:
            report, seconds = analysed(classifier, batch, GROWTHS[growth].options)
    size = report.model.parameters.count if growth == "parameters" else report.batch.samples
    return size, seconds / sum((report.products or {}).values()), held.bytes


def growth_of(growth: str, quantities: tuple[str, str], point: Callable[[str, int], Point]) -> Iterator[Row]:
    """Measure each size in a separate process, and print the slopes of time and memory."""
    found, grown = [], GROWTHS[growth]
    for size in grown.sizes:
        # A process keeps memory that it has freed.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as apart_from_others:
            found.append(apart_from_others.submit(point, growth, size).result())
    for place, quantity in enumerate(quantities, start=1):
        yield curve(grown.axis, grown.subject, quantity, [(each[0], each[place]) for each in found])


def curve(axis: str, subject: str, quantity: str, points: Sequence[tuple[float, float]]) -> Curve:
    steep = slope(points[-FITTED:])
    shown = ", ".join(f"{x:.0e}: {y:.3g}" for x, y in points)
    return Curve(
        f"{quantity} over {axis} ({subject})",
        f"slope {steep:.2f} ({shown})",
        f"at most {LARGEST_SLOPE:g}",
        steep <= LARGEST_SLOPE,
        axis=axis,
        subject=subject,
        quantity=quantity,
        points=tuple(points),
        slope=steep,
    )


def write_rows(path: Path, count: int, features: int, block: int = 1_000) -> None:
    """Write a batch of random rows block by block."""
    generator = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as archive:
        for name, shape, dtype in (("x", (count, features), "<f4"), ("y", (count,), "<i8")):
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                header = {"descr": dtype, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(member, header)
                for start in range(0, count, block):
                    size = (min(block, count - start), *shape[1:])
                    values = generator.integers(10, size=size) if name == "y" else generator.standard_normal(size)
                    member.write(values.astype(dtype).tobytes())


ROWS: dict[str, Callable[[], Iterator[Row]]] = {
    **{f"product:{name}": partial(product_of, name) for name in CASES},
    "default:conv_net": partial(default_of, "conv_net"),
    "lambda_max:resnet18": partial(analysis_of, "resnet18", GOALS["resnet18"], **PRECISIONS["float64"]),
    **{
        f"lambda_max:{name}:{precision}": partial(
            analysis_of, name, GOALS[name], memory_limit=int(GOALS[name].gib * GIB), moments="none", **options
        )
        for name in ("distilbert", "vit_b")
        for precision, options in PRECISIONS.items()
    },
    "time_limit:resnet18": partial(limited, "resnet18", 20.0),
    **{
        f"growth:{name}:{growth}": partial(growth_of, growth, words, point)
        for name, words, point in (
            ("product", ("seconds of a product", "bytes of a product"), product_point),
            ("lambda_max", ("seconds of λ_max per product", "bytes of λ_max"), lambda_max_point),
        )
        for growth in GROWTHS
    },
}
"""Rows by name; each runs in a separate process."""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=ROWS, metavar="ROW", help=", ".join(ROWS))
    end_with_what_was_started()
    names = parser.parse_args().only or tuple(ROWS)
    return int(not show(row for name in names for row in apart(ROWS[name], name)))


if __name__ == "__main__":
    raise SystemExit(main())
