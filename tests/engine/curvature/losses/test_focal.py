"""The focal loss against mpmath: no margin may cost digits, in values, closed forms or automatic derivatives."""

from __future__ import annotations

from collections.abc import Iterator

import mpmath
import numpy as np
import pytest
import torch
from support.forms import crossed, thinned
from torch import Tensor
from torch.func import grad, jvp

from wsb_engine.curvature.losses.cross_entropy import CrossEntropy
from wsb_engine.curvature.losses.focal import Focal

UNIT = 2.0**-53
TINY = 1e-300
"""Next to the range of numbers; powers of 1 − p underflow."""
MARGINS = [0.0, 2.0, 20.0, 36.0, 100.0]
GAMMAS = [0.0, 0.5, 1.0, 2.0, 5.0]


def cases(classes: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits and targets: the first class leads by the margin; the label is right, wrong or smoothed, with a weight."""
    rng = np.random.default_rng(classes)
    right, wrong = 2.5 * np.eye(classes)[0], 0.3 * np.eye(classes)[-1]
    for margin in MARGINS:
        z = rng.normal(size=classes) * 0.3
        z[0] = z[1:].max() + margin
        for y in (right, wrong, 0.9 * right + 0.1 / classes):
            yield torch.from_numpy(z)[None], torch.from_numpy(y)[None]


def exact(z: Tensor, y: Tensor, gamma: float) -> tuple[mpmath.mpf, list[mpmath.mpf], mpmath.matrix]:
    """ℓ, its gradient and its Hessian in z, by the chain rule through p = softmax(z)."""
    values, targets, g = (
        [mpmath.mpf(v) for v in z[0].tolist()],
        [mpmath.mpf(v) for v in y[0].tolist()],
        mpmath.mpf(gamma),
    )
    e = [mpmath.exp(v) for v in values]
    p = [each / mpmath.fsum(e) for each in e]
    C = range(len(p))
    loss = -mpmath.fsum(t * (1 - q) ** g * mpmath.log(q) for t, q in zip(targets, p, strict=True))
    # f(p) = −(1 − p)^γ ln p
    first = [g * (1 - q) ** (g - 1) * mpmath.log(q) - (1 - q) ** g / q for q in p]
    second = [
        -g * (g - 1) * (1 - q) ** (g - 2) * mpmath.log(q) + 2 * g * (1 - q) ** (g - 1) / q + (1 - q) ** g / q**2
        for q in p
    ]
    J = [[p[j] * ((i == j) - p[i]) for i in C] for j in C]
    gradient = [mpmath.fsum(targets[j] * first[j] * J[j][i] for j in C) for i in C]
    S = mpmath.matrix(len(p), len(p))
    for i in C:
        for k in C:
            bent = [J[j][k] * ((i == j) - p[i]) - p[j] * p[i] * ((i == k) - p[k]) for j in C]
            S[i, k] = mpmath.fsum(targets[j] * (second[j] * J[j][i] * J[j][k] + first[j] * bent[j]) for j in C)
    return loss, gradient, S


def distance(found: Tensor, want: mpmath.matrix | list[mpmath.mpf]) -> mpmath.mpf:
    wanted = want if isinstance(want, list) else [want[i, j] for i in range(want.rows) for j in range(want.cols)]
    return max(abs(mpmath.mpf(f) - w) for f, w in zip(found.flatten().tolist(), wanted, strict=True))


def size(S: mpmath.matrix) -> mpmath.mpf:
    return max(abs(S[i, j]) for i in range(S.rows) for j in range(S.cols))


def allowed(z: Tensor, classes: int, gamma: float) -> float:
    """What e^d of a rounded d costs, and its powers."""
    return (32 + 4 * classes + (2 + 2 * gamma) * float(z.max() - z.min())) * (1 + gamma) * UNIT


@pytest.mark.parametrize(("gamma", "classes"), crossed(GAMMAS, [2, 3, 7]))
def test_values_gradients_and_curvatures_are_right_to_rounding(gamma: float, classes: int) -> None:
    loss_ = Focal(focal_gamma=gamma)
    for z, y in cases(classes):
        with mpmath.workdps(700):
            loss, gradient, S = exact(z, y, gamma)
            units, at = allowed(z, classes, gamma), loss_.derivatives(z, y)
            assert abs(mpmath.mpf(float(loss_.values(z, y))) - loss) <= units * loss + TINY
            # Where g vanishes between two targets no formula of them keeps more.
            terms = max(map(abs, gradient)) + (float(y.min() > 0) and size(S))
            assert distance(at.gradient, gradient) <= units * terms + TINY
            assert distance(at.curvature(), S) <= units * size(S) + TINY
            assert distance(at.diagonal, [S[i, i] for i in range(classes)]) <= units * size(S) + TINY


@pytest.mark.parametrize(("gamma", "offset"), crossed(GAMMAS, [0.0, 1e3]))
def test_products_with_the_curvature_lose_nothing_to_offsets(gamma: float, offset: float) -> None:
    for z, y in cases(3):
        r = torch.from_numpy(np.random.default_rng(1).normal(size=3) + offset)
        found = Focal(focal_gamma=gamma).derivatives(z, y).column_product(1.0)(r.clone().reshape(-1, 1, 1)).flatten()
        with mpmath.workdps(700):
            S = exact(z, y, gamma)[2]
            want = S * mpmath.matrix(r.tolist())
            limit = allowed(z, 3, gamma) * size(S) * float(torch.linalg.vector_norm(r)) + TINY
            assert distance(found, [want[i] for i in range(3)]) <= limit


@pytest.mark.parametrize("gamma", thinned(GAMMAS, 3))
def test_automatic_derivatives_are_the_stable_forms(gamma: float) -> None:
    for z, y in cases(3):
        v = torch.from_numpy(np.random.default_rng(2).normal(size=(1, 3)))

        def loss(z: Tensor, y: Tensor = y) -> Tensor:
            return Focal(focal_gamma=gamma).values(z, y).sum()

        first, forward = jvp(grad(loss), (z,), (v,))
        point = z.clone().requires_grad_()
        slope = torch.autograd.grad(loss(point), point, create_graph=True)[0]
        backward = torch.autograd.grad((slope * v).sum(), point)[0]
        with mpmath.workdps(700):
            _, gradient, S = exact(z, y, gamma)
            image = S * mpmath.matrix(v[0].tolist())
            limit = allowed(z, 3, gamma)
            terms = max(map(abs, gradient)) + (float(y.min() > 0) and size(S))
            assert distance(first, gradient) <= limit * terms + TINY
            for product in (forward, backward):
                assert distance(product, [image[i] for i in range(3)]) <= limit * size(S) * float(v.norm()) + TINY


@pytest.mark.parametrize(
    ("gamma", "margin", "y"),
    crossed(GAMMAS, [750.0, 2000.0, -750.0, -2000.0], [[1.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3]]),
)
def test_beyond_the_range_of_numbers_everything_is_finite(gamma: float, margin: float, y: list[float]) -> None:
    z, targets = torch.tensor([[margin, 0.0, 0.0]], dtype=torch.float64), torch.tensor([y], dtype=torch.float64)
    loss = Focal(focal_gamma=gamma)
    hessian = torch.autograd.functional.hessian(lambda z: loss.values(z, targets).sum(), z)
    assert torch.isfinite(hessian).all()
    at = loss.derivatives(z, targets)
    assert all(torch.isfinite(each).all() for each in (at.gradient, at.curvature(), at.diagonal))
    torch.testing.assert_close(at.curvature()[0], hessian[0, :, 0], rtol=1e-12, atol=1e-280)


def test_with_the_exponent_0_it_is_the_cross_entropy() -> None:
    for z, y in cases(4):
        focal, entropy = Focal(focal_gamma=0.0), CrossEntropy()
        torch.testing.assert_close(focal.values(z, y), entropy.values(z, y), rtol=1e-14, atol=0)
        first, second = focal.derivatives(z, y), entropy.derivatives(z, y)
        torch.testing.assert_close(first.gradient, second.gradient, rtol=1e-14, atol=0)
        torch.testing.assert_close(first.curvature(), second.curvature(), rtol=1e-14, atol=0)


def test_its_curvature_is_not_semidefinite() -> None:
    z, y = torch.tensor([[4.0, 0.0]], dtype=torch.float64), torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    assert float(torch.linalg.eigvalsh(Focal().derivatives(z, y).curvature())[0, 0]) < -1e-3
    assert not Focal.convex
