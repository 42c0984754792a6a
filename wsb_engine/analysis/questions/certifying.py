"""Certified ends of symmetric operators other than H, by the bounds of the enclosure (mathematics.md, section 15)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from wsb_engine import report as r
from wsb_engine.analysis.enclosing import USELESS_WIDTH
from wsb_engine.analysis.enclosure_part import certified
from wsb_engine.analysis.monitor import Monitor
from wsb_engine.bounds.certificates import Enclosures, End, Premises
from wsb_engine.bounds.rounding import Rounding
from wsb_engine.curvature.cost import WORKING_VECTORS
from wsb_engine.curvature.products.autodiff import HessianProduct
from wsb_engine.options import Options
from wsb_engine.spectrum.confirmation import confirm, multiplied, outer_vectors
from wsb_engine.spectrum.enclosure import Enclosing, enclose, finish
from wsb_engine.spectrum.lanczos import Lanczos
from wsb_engine.spectrum.run import Run
from wsb_engine.spectrum.three_vectors import ThreeVectors

Measured = Callable[[Rounding, Tensor, Tensor, float], Rounding]
"""Rounding of the operator, a unit vector (P,), its image times a scaling, which is a power of two, and the scaling →
the rounding with what a measurement on the vector adds."""


@dataclass(frozen=True)
class Operator:
    """A symmetric matrix, by its products with vectors."""

    vector: Callable[[Tensor], Tensor]
    """v (P,) ↦ its image (P,) float64; does not write into v."""
    parameters: int
    """Order of the matrix."""
    dtype: torch.dtype
    device: torch.device


def of_product(product: HessianProduct) -> Operator:
    """Return a Hessian product as an operator."""
    return Operator(product.vector, product.parameters, product.dtype, product.device)


@dataclass(frozen=True)
class Certified:
    """Both ends of an operator's spectrum, in its units."""

    ends: Enclosures

    @property
    def lambda_max(self) -> r.CertifiedInterval:
        return certified(self.ends.lambda_max)


def certify(
    operator: Operator,
    premises: Premises,
    options: Options,
    *,
    seed: int,
    memory: int,
    monitor: Monitor,
    measured: Measured,
    progress: Callable[[int], None] = lambda _: None,
) -> Certified | None:
    """Enclose the ends of an operator's spectrum as those of H are, and confirm them by fresh products.

    Args:
        operator: The matrix.
        premises: Premises in its units.
        options: Options, for the limits and the basis.
        seed: Seed of the start vector; each operator needs another one.
        memory: Bytes to work in.
        monitor: Clock.
        measured: Measures rounding on the outer Ritz vectors.
        progress: Called with the number of products so far.

    Returns:
        None if the ends say nothing, or fresh products do not confirm them.

    Raises:
        TimeLimitError: ``time_limit`` if there was no time for a single product.
    """
    run, steps = _run(operator, options, seed, memory)
    with monitor.limited():
        run.step()
        enclosing = Enclosing(run, premises.scaled(run.scaling))
        found = enclose(
            enclosing,
            max_products=steps,
            progress=lambda now: progress(now.products),
            expired=lambda: monitor.expired,
        )
        if isinstance(run, ThreeVectors):
            run.end()
        vectors = outer_vectors(run)
    rounding = premises.rounding

    def measure(x: Tensor, image: Tensor) -> None:
        nonlocal rounding
        rounding = measured(rounding, x, image, run.scaling)

    pairs = multiplied(run, vectors, measure)
    enclosing, found = finish(enclosing, found, rounding.scaled(run.scaling))
    found, residual = confirm(enclosing, found, pairs)
    asked = (found.lambda_max, found.lambda_min)[: 1 + premises.both]
    if residual.excess > residual.explained or any(_says_nothing(end, found.lambda_min.size) for end in asked):
        return None
    factor = 1 / run.scaling
    ends = Enclosures(found.lambda_max.scaled(factor), found.lambda_min.scaled(factor), run.products)
    return Certified(ends)


def _run(operator: Operator, options: Options, seed: int, memory: int) -> tuple[Run, int]:
    """Return a run that fits in memory, with a basis if that holds all products allowed, and its most steps."""
    P, item = operator.parameters, operator.dtype.itemsize
    unit = torch.finfo(operator.dtype).eps / 2
    wanted, held = min(options.max_products, P), (memory // P - 8 * WORKING_VECTORS) // item
    if options.basis == "three_vectors" or (options.basis == "auto" and held < wanted > 1):
        three = ThreeVectors(operator.vector, P, operator.device, seed, unit, homogeneity=True)
        return three, options.max_products
    lanczos = Lanczos(operator.vector, P, operator.device, seed, unit, homogeneity=True)
    return lanczos, max(1, min(wanted, held))


def _says_nothing(end: End, spread: float) -> bool:
    return not math.isfinite(end.width) or end.width > USELESS_WIDTH * spread > 0
