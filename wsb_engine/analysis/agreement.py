"""Measured errors of Hessian-vector products and of the dense Hessian, which the checks of a report judge."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from wsb_engine.analysis.monitor import Monitor
from wsb_engine.analysis.problem import Problem
from wsb_engine.bounds.rounding import Rounding
from wsb_engine.curvature.closed_form.activations import value
from wsb_engine.curvature.closed_form.mlp import network
from wsb_engine.curvature.products.autodiff import HessianProduct, largest_entry
from wsb_engine.model import Tensors
from wsb_engine.random_vectors import gaussian
from wsb_engine.spectrum.confirmation import RitzResidual
from wsb_engine.spectrum.run import dot

FLOAT32_DRIFT = 1e-3
"""Relative error of a float32 product against a float64 one beyond which the report warns."""

DEVIATIONS = 16.0
"""|uᵀ(E − Eᵀ)v| for Gaussian u and v, relative to ‖E‖_F, at most: eight standard deviations."""
MOST_EXPLAINED = 1e-3
"""Relative asymmetry beyond which products are not those of one matrix, whatever was measured as rounding."""

STREAM = 1 << 32
"""Separates these random vectors from the start vectors of the same seed."""


@dataclass(frozen=True)
class MeasuredErrors:
    """Errors that the stages of an analysis measured; None if a stage did not run."""

    symmetry: float | None = None
    """Asymmetry of Hessian-vector products on random vectors, beyond what their rounding explains."""
    asymmetry: float | None = None
    """Asymmetry of the dense Hessian as formed."""
    disagreement: float | None = None
    """‖Hv − H′v‖ / ‖H′v‖ for a random v, with H dense and H′v by automatic differentiation."""
    magnification: float = 0.0
    """‖v‖ / ‖H′v‖ of that product, by which rounding of H is magnified in it."""
    ritz: RitzResidual | None = None
    """Residuals of the Ritz pairs of the enclosure, by fresh products."""
    rows: tuple[float, float] | None = None
    """|Σ_s w_s v·h_s v − v·H v| along the eigenvector v, by the rows and by a product; and |v·H v|."""


def of_products(
    problem: Problem, product: HessianProduct, rounding: Rounding, seed: int, monitor: Monitor
) -> MeasuredErrors:
    """Measure errors of products by random vectors; nothing once time is up."""
    if monitor.expired:
        return MeasuredErrors()
    if problem.objective.dtype == torch.float32:
        drift = _float32_drift(problem, product, seed)
        if drift > FLOAT32_DRIFT:
            monitor.warn(
                "float32_drift",
                f"products in float32 are off by {drift:.2g} of their size: certified numbers allow for that, "
                "estimates do not; use dtype float64",
            )
    return MeasuredErrors(symmetry=_symmetry_error(product, rounding, seed))


def with_dense(errors: MeasuredErrors, problem: Problem, hessian: Tensor, seed: int) -> MeasuredErrors:
    """Add how far the dense Hessian is from automatic differentiation.

    Args:
        errors: Errors of the products.
        problem: The analysis.
        hessian: (P, P) float64, as formed.
        seed: Seed of a random vector.
    """
    v = gaussian(len(hessian), seed, STREAM, hessian.device)
    reference = _reference(problem, v)
    scale, difference = norm(reference), norm(hessian @ v - reference)
    if scale == 0:
        disagreement, magnification = math.inf if difference > 0 else 0.0, 0.0
    else:
        disagreement, magnification = difference / scale, norm(v) / scale
    return replace(errors, disagreement=disagreement, magnification=magnification)


def norm(v: Tensor) -> float:
    """Compute ‖v‖, divided by the largest entry first, so that no square leaves the range of numbers."""
    largest = largest_entry(v)
    return largest * float(torch.linalg.vector_norm(v / largest)) if largest else 0.0


def _symmetry_error(product: HessianProduct, rounding: Rounding, seed: int) -> float:
    """Compute |uᵀHv − vᵀHu| / (‖Hu‖ ‖v‖ + ‖Hv‖ ‖u‖) for random u and v, less what rounding of H explains.

    Where terms of H cancel, its rounding is large beside H itself; certified numbers allow for it already.
    """
    u, v = (_random(product, seed, i) for i in range(2))
    (first, length_first, across), (second, length_second, back) = (
        _multiplied(product, x, y) for x, y in ((u, v), (v, u))
    )
    largest = max(first, second)
    if largest == 0:
        return 0.0
    first, second, length_u, length_v = first / largest, second / largest, norm(u.double()), norm(v.double())
    scale = first * length_first * length_v + second * length_second * length_u
    noise = (DEVIATIONS * rounding.operator + 2 * (rounding.product or 0.0) * length_u * length_v) / largest
    return max(abs(first * across - second * back) - min(noise, MOST_EXPLAINED * scale), 0.0) / scale


def _multiplied(product: HessianProduct, x: Tensor, y: Tensor) -> tuple[float, float, float]:
    """Return the largest entry of Hx, and ‖Hx‖ and y·Hx divided by it."""
    image = product.vector(x)
    largest = largest_entry(image)
    if largest == 0:
        return 0.0, 0.0, 0.0
    image.div_(largest)
    return largest, norm(image), dot(y, image)


def _float32_drift(problem: Problem, product: HessianProduct, seed: int) -> float:
    """Compute ‖Hv − H′v‖ / ‖H′v‖ with H′v in float64, for a random v."""
    v = _random(product, seed, 0).double()
    want = problem.product_at(problem.objective.in_double()).vector(v)
    v = v.float()
    want, found = _normalised(want, product.vector(v))
    scale = float(torch.linalg.vector_norm(want))
    return float(torch.linalg.vector_norm(found.sub_(want))) / scale if scale else 0.0


def _normalised(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Divide both by the largest entry of either, in place, so that their norms neither underflow nor overflow."""
    largest = max(largest_entry(a), largest_entry(b))
    return (a.div_(largest), b.div_(largest)) if largest else (a, b)


def _random(product: HessianProduct, seed: int, index: int) -> Tensor:
    return gaussian(product.parameters, seed, STREAM + index, product.device).to(product.dtype)


def _reference(problem: Problem, v: Tensor) -> Tensor:
    """Compute H·v by automatic differentiation of the layers of an MLP, or else of the file's graph."""
    objective, structure = problem.objective, problem.structure
    if structure is None:
        return problem.from_scratch(objective).vector(v)

    def logits(parameters: Tensors, inputs: Tensors) -> Tensor:
        z = structure.mlp.features(inputs)
        for index, layer in enumerate(network(structure.mlp, parameters, frozenset(), objective.loss).layers):
            z = torch.nn.functional.linear(z, layer.W, layer.b)
            if index < len(structure.mlp.activations):
                z = value(structure.mlp.activations[index], z)
        return z

    # Reverse mode twice needs no import that takes a second.
    return replace(objective, function=logits).twice_backward(v.to(objective.dtype))
