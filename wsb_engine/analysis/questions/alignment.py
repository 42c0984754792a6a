"""How the gradient lies to directions of curvature, and in which layers these live (mathematics.md, section 15)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wsb_engine import report as r
from wsb_engine.analysis import krylov
from wsb_engine.analysis.agreement import norm
from wsb_engine.analysis.monitor import Monitor
from wsb_engine.analysis.problem import Problem
from wsb_engine.analysis.questions.groups import Group, layers_of
from wsb_engine.bounds.certificates import End, Premises
from wsb_engine.options import Options
from wsb_engine.spectrum.confirmation import outer_vectors
from wsb_engine.spectrum.enclosure import Enclosing, enclose
from wsb_engine.spectrum.lanczos import Lanczos
from wsb_engine.spectrum.run import UNIT, dot
from wsb_engine.spectrum.top import TopEigenvalues

COMPLEMENT_GAP = 1e-3
"""Relative gap at which λ_max of the complement is known well enough."""
ORTHOGONALITY = 64.0
"""Units of rounding by which computed vectors may depart from orthonormal ones, and dot products from theirs."""
STREAM = 0x3C6EF372
"""Separates the start vector in the complement from those of other runs of the same seed."""


@dataclass(frozen=True)
class _Rest:
    """An upper bound on the spectrum of H in the complement of the eigenvectors found."""

    upper: float
    failure_probability: float


def alignment(
    problem: Problem, shared: krylov.Krylov, premises: Premises, options: Options, memory: int, monitor: Monitor
) -> r.Alignment:
    """Compute cosines of the gradient and shares of layers, and certify what gaps allow.

    Args:
        problem: The analysis.
        shared: Its Krylov run, with a basis.
        premises: Premises of the enclosure, with all that was measured of rounding.
        options: Options.
        memory: Bytes to work in besides the basis of the run.
        monitor: Clock, progress and warnings.

    Raises:
        TimeLimitError: ``time_limit``.
    """
    g = _unit(problem.objective.gradient())
    found = krylov.top(shared, premises, options, monitor)
    noise = _noise(shared, premises)
    curvature = None if g is None else _quotient(g, shared.product.vector(g), noise)
    negative = _negative(problem, shared, g, noise)
    rest: _Rest | None = None
    with monitor.optional("certified cosines", otherwise=True):
        rest = _rest(shared, found, premises, options, memory, monitor)
    errors: list[float | None] = (
        [None] * len(found.eigenvalues) if rest is None else _errors(found, rest, noise, shared.run.unit)
    )
    cosines = None if g is None else found.eigenvectors.T @ g
    layers, selected = layers_of(problem), problem.objective.selected
    sizes = {name: tensor.numel() for name, tensor in selected.items()}
    vectors = [
        r.Eigenvector(
            eigenvalue=float(found.eigenvalues[i]),
            residual=float(found.residuals[i]),
            cosine=None if cosines is None else min(1.0, abs(float(cosines[i]))),
            cosine_error=None if cosines is None else errors[i],
            layers=shares(found.eigenvectors[:, i], layers, sizes),
        )
        for i in range(len(found.eigenvalues))
    ]
    certain = rest is not None and any(each.cosine_error is not None for each in vectors)
    return r.Alignment(
        gradient_curvature=curvature,
        subspace_cosine=None if cosines is None else min(1.0, norm(cosines)),
        eigenvectors=vectors,
        failure_probability=rest.failure_probability or None if certain and rest is not None else None,
        negative_curvature=negative,
    )


def _noise(shared: krylov.Krylov, premises: Premises) -> float:
    """Bound what rounding adds to a product with a unit vector: ‖E‖, and that of the product itself."""
    run, rounding = shared.run, premises.rounding
    if rounding.product is not None:
        return rounding.operator + rounding.product
    measured = run.product_rounding()[-1] / run.scaling if run.steps else 0.0
    return rounding.operator + measured


def _unit(v: Tensor) -> Tensor | None:
    """Divide by the norm, whose square may leave the range of numbers; None for 0."""
    length = norm(v)
    return v / length if length else None


def _quotient(x: Tensor, image: Tensor, noise: float) -> r.Interval:
    """Return the range of the Rayleigh quotient of a vector, from its product."""
    value = dot(x, image) / dot(x, x)
    noise += (math.log2(max(len(x), 2)) + 8) * UNIT * norm(image)
    return r.Interval(lower=value - noise, upper=value + noise)


def _negative(problem: Problem, shared: krylov.Krylov, g: Tensor | None, noise: float) -> r.NegativeCurvature | None:
    """Describe the lowest Ritz vector of the run; None if its Rayleigh quotient is not certainly negative."""
    run = shared.run
    vectors = outer_vectors(run) if shared.pairs is None else shared.pairs.vectors
    x = vectors.columns[:, 1].double()
    image = shared.product.vector(x)
    quotient = _quotient(x, image, noise)
    if quotient.upper >= 0:
        return None
    sizes = {name: tensor.numel() for name, tensor in problem.objective.selected.items()}
    return r.NegativeCurvature(
        rayleigh_quotient=quotient,
        residual=norm(image - (quotient.lower + quotient.upper) / 2 * x),
        cosine=None if g is None else min(1.0, abs(float(x @ g))),
        layers=shares(x, layers_of(problem), sizes),
    )


def _rest(
    shared: krylov.Krylov, found: TopEigenvalues, premises: Premises, options: Options, memory: int, monitor: Monitor
) -> _Rest | None:
    """Bound the spectrum in the complement of the eigenvectors by another run from a random start.

    Returns:
        None if the bound is not finite.
    """
    product, locked = shared.product, found.eigenvectors.T.contiguous()
    if len(locked) == product.parameters:
        return _Rest(-math.inf, 0.0)
    run = Lanczos(product.vector, product.parameters, product.device, options.seed ^ STREAM, shared.run.unit, locked)
    run.step()
    known = Premises(
        rounding=premises.rounding,
        moments=None,
        failure_probability=premises.failure_probability,
        relative_gap=max(COMPLEMENT_GAP, options.relative_gap),
        both=False,
    )
    end: End = enclose(
        Enclosing(run, known.scaled(run.scaling)),
        max_products=max(
            1, min(shared.max_steps, run.dimension, memory // (product.dtype.itemsize * product.parameters))
        ),
        progress=lambda now: monitor.report(0.5, now.products),
        expired=lambda: monitor.expired,
    ).lambda_max
    upper = end.upper / run.scaling
    return _Rest(upper, end.failure_probability) if math.isfinite(upper) else None


def _errors(found: TopEigenvalues, rest: _Rest, noise: float, unit: float) -> list[float | None]:
    """Bound the distance of each computed unit vector from the eigenvector, and so that of its cosines.

    In the complement of x_i, H has the spectrum of diag(θ_j, j ≠ i) and of the complement of all, moved by at most √2
    times the norm of all residuals. With δ the distance of θ_i from that, tan ∠(x_i, v_i) ≤ r_i / (δ − r_i).

    Returns:
        None where the gap is not certain.
    """
    values = found.eigenvalues.tolist()
    residuals = [residual + noise for residual in found.residuals.tolist()]
    moved = math.sqrt(2) * math.hypot(*residuals) + len(values) * ORTHOGONALITY * unit * max(
        map(abs, values), default=0.0
    )
    errors: list[float | None] = []
    for i, (value, residual) in enumerate(zip(values, residuals, strict=True)):
        others = [abs(value - other) for j, other in enumerate(values) if j != i]
        gap = min([*others, value - rest.upper]) - moved - residual
        distance = 2 * math.sin(math.atan(residual / gap) / 2) if gap > residual else math.inf
        errors.append(distance + ORTHOGONALITY * unit if distance < 1 else None)
    return errors


def shares(x: Tensor, layers: Sequence[Group], sizes: dict[str, int]) -> list[r.LayerShare]:
    """Return the largest shares of a unit vector by layer, in descending order.

    Args:
        x: (P,)
        layers: The layers.
        sizes: Number of entries of each selected parameter, in order.
    """
    pieces = dict(zip(sizes, x.split(list(sizes.values())), strict=True))
    squares = {name: float(torch.dot(piece, piece)) for name, piece in pieces.items()}
    found = [
        r.LayerShare(name=layer.name, share=min(1.0, sum(squares[name] for name in layer.tensors))) for layer in layers
    ]
    return sorted(found, key=lambda each: -each.share)[: r.MAX_SHARES]
