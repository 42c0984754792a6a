"""Cross-entropies against mpmath: no margin, label or offset may cost digits, in values or automatic derivatives."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import get_args

import mpmath
import numpy as np
import pytest
import torch
from support.forms import crossed
from torch import Tensor
from torch.func import grad, jvp

from wsb_engine.curvature.losses import LOSSES, Targets, automatic
from wsb_engine.curvature.losses.base import in_blocks
from wsb_engine.options import LossKind

UNIT = 2.0**-53
MARGINS = [0.0, 2.0, 20.0, 36.0, 100.0, 700.0]


def cases(classes: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits and targets: the first class leads by the margin, the label is right, wrong or smoothed."""
    rng = np.random.default_rng(classes)
    for margin in MARGINS:
        z = rng.normal(size=max(classes, 1)) * 0.3
        z[0] = z[1:].max(initial=0.0) + margin if classes > 1 else margin
        if classes == 1:
            for sign in (1, -1):
                for y in (0.0, 1.0, 0.1):
                    yield torch.tensor([[sign * z[0]]], dtype=torch.float64), torch.tensor([[y]], dtype=torch.float64)
            continue
        right, wrong = np.eye(classes)[0], np.eye(classes)[-1]
        for y in (right, wrong, 0.9 * right + 0.1 / classes):
            yield torch.from_numpy(z)[None], torch.from_numpy(y)[None]


def exact(z: Tensor, y: Tensor) -> tuple[mpmath.mpf, list[mpmath.mpf], mpmath.matrix]:
    """ℓ, its gradient and its Hessian in z, from p = softmax(z) as written."""
    values, targets = [mpmath.mpf(v) for v in z[0].tolist()], [mpmath.mpf(v) for v in y[0].tolist()]
    if len(values) == 1:
        p = 1 / (1 + mpmath.exp(-values[0]))
        loss = -targets[0] * mpmath.log(p) - (1 - targets[0]) * mpmath.log(1 - p)
        return loss, [p - targets[0]], mpmath.matrix([[p * (1 - p)]])
    e = [mpmath.exp(v) for v in values]
    p = [each / mpmath.fsum(e) for each in e]
    s = mpmath.fsum(targets)
    loss = s * mpmath.log(mpmath.fsum(e)) - mpmath.fsum(t * v for t, v in zip(targets, values, strict=True))
    S = mpmath.matrix(len(p), len(p))
    for i in range(len(p)):
        for j in range(len(p)):
            S[i, j] = s * ((p[i] if i == j else 0) - p[i] * p[j])
    return loss, [s * each - t for each, t in zip(p, targets, strict=True)], S


def distance(found: Tensor, want: mpmath.matrix | list[mpmath.mpf]) -> float:
    """Largest error of an entry."""
    wanted = want if isinstance(want, list) else [want[i, j] for i in range(want.rows) for j in range(want.cols)]
    return float(max(abs(mpmath.mpf(f) - w) for f, w in zip(found.flatten().tolist(), wanted, strict=True)))


def size(S: mpmath.matrix) -> float:
    return float(max(abs(S[i, j]) for i in range(S.rows) for j in range(S.cols)))


@pytest.mark.parametrize("classes", [1, 2, 3, 10])
def test_values_gradients_and_curvatures_are_right_to_rounding(classes: int) -> None:
    for z, y in cases(classes):
        with mpmath.workdps(700):
            loss, gradient, S = exact(z, y)
            spread = float(z.abs().max() if classes == 1 else z.max() - z.min())
            allowed = (8 + 2 * spread + 2 * classes) * UNIT  # e^d of a rounded d
            at = automatic(classes).derivatives(z, y)
            value = float(automatic(classes).values(z, y))
            assert abs(float((mpmath.mpf(value) - loss) / loss)) < allowed
            # Where y is near p no formula of p and y keeps more.
            terms = float(sum(abs(g) for g in gradient)) + float((y * (1 - y)).sum())
            assert distance(at.gradient, gradient) <= allowed * terms
            curvature = at.curvature()
            assert distance(curvature, S) <= allowed * size(S)
            factor = at.factor()[0]
            assert distance(factor.T @ factor, S) <= 3 * allowed * size(S)
            W = torch.from_numpy(np.random.default_rng(0).normal(size=(classes, 4)) + 1e3)
            product = at.factor_times(W)[0]
            written = mpmath.matrix(W.T.tolist()) * S * mpmath.matrix(W.tolist())
            assert distance(product.T @ product, written) <= 40 * allowed * size(S) * float(W.abs().max() ** 2)


@pytest.mark.parametrize(("classes", "offset"), crossed([1, 2, 3, 10], [0.0, 1e3]))
def test_products_with_the_curvature_lose_nothing_to_offsets(classes: int, offset: float) -> None:
    for z, y in cases(classes):
        r = torch.from_numpy(np.random.default_rng(1).normal(size=classes) + offset)
        found = automatic(classes).derivatives(z, y).column_product(1.0)(r.clone().reshape(-1, 1, 1)).flatten()
        with mpmath.workdps(700):
            S = exact(z, y)[2]
            want = S * mpmath.matrix(r.tolist())
            allowed = (12 + 2 * float(z.abs().max())) * UNIT * size(S) * float(torch.linalg.vector_norm(r))
            assert distance(found, [want[i] for i in range(classes)]) <= allowed


@pytest.mark.parametrize("classes", [1, 2, 3, 10])
def test_automatic_derivatives_are_the_stable_forms(classes: int) -> None:
    for z, y in cases(classes):
        v = torch.from_numpy(np.random.default_rng(2).normal(size=(1, classes)))

        def loss(z: Tensor, y: Tensor = y) -> Tensor:
            return automatic(classes).values(z, y).sum()

        first, forward = jvp(grad(loss), (z,), (v,))
        point = z.clone().requires_grad_()
        slope = torch.autograd.grad(loss(point), point, create_graph=True)[0]
        backward = torch.autograd.grad((slope * v).sum(), point)[0]
        with mpmath.workdps(700):
            _, gradient, S = exact(z, y)
            image = S * mpmath.matrix(v[0].tolist())
            want = [image[i] for i in range(classes)]
            allowed = (12 + 2 * float(z.abs().max()) + 2 * classes) * UNIT
            terms = float(sum(abs(g) for g in gradient)) + float((y * (1 - y)).sum())
            assert distance(first, gradient) <= allowed * terms
            for product in (forward, backward):
                assert distance(product, want) <= allowed * size(S) * float(torch.linalg.vector_norm(v))


@pytest.mark.parametrize("margin", [750.0, 2000.0, -750.0, -2000.0])
@pytest.mark.parametrize("classes", [1, 3])
def test_beyond_the_range_of_numbers_everything_is_finite(classes: int, margin: float) -> None:
    z = torch.zeros(1, classes, dtype=torch.float64)
    z[0, 0] = margin
    y = torch.full_like(z, 1 / classes)
    hessian = torch.autograd.functional.hessian(lambda z: automatic(classes).values(z, y).sum(), z)
    assert torch.isfinite(hessian).all()
    at = automatic(classes).derivatives(z, y)
    assert all(torch.isfinite(each).all() for each in (at.p, at.complement, at.gradient, at.factor()))


def test_a_class_of_no_weight_may_have_no_probability() -> None:
    z = torch.tensor([[0.0, 1.0, -math.inf]], dtype=torch.float64)
    y = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    assert float(automatic(3).values(z, y)) == pytest.approx(math.log1p(math.e), rel=1e-14)


@pytest.mark.parametrize("margin", [1.0, 40.0, 300.0, 700.0])
def test_the_scale_brings_a_batch_near_one(margin: float) -> None:
    z = torch.tensor([[margin, 0.0], [margin + 5, 0.0]], dtype=torch.float64)
    y = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    targets = Targets(y, torch.full((2,), 0.5, dtype=torch.float64))
    found = automatic(2).sizes(in_blocks(z, targets)).scale
    mantissa, exponent = math.frexp(found)
    assert mantissa == 0.5
    assert (exponent - 1) % 2 == 0
    assert found * math.exp(-margin) >= 0.125 or exponent - 1 == 600


def test_every_kind_that_a_report_may_state_is_a_loss_of_that_kind() -> None:
    assert list(LOSSES) == list(get_args(LossKind))
    assert all(loss.kind == kind for kind, loss in LOSSES.items())


@pytest.mark.parametrize("classes", [1, 10])
def test_what_a_loss_says_of_a_batch_is_the_same_in_blocks(classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    z = 30 * torch.randn(50, classes, generator=generator, dtype=torch.float64)
    loss = automatic(classes)
    y = loss.targets(torch.arange(50) % max(classes, 2), classes)
    targets = Targets(y, torch.rand(50, generator=generator, dtype=torch.float64))
    sizes, averages = loss.sizes(in_blocks(z, targets)), loss.averages(in_blocks(z, targets))
    assert sizes.least_curvature < 1e-6
    assert averages.loss == pytest.approx(float((targets.weights * loss.values(z, y)).sum()), rel=1e-15)
    monkeypatch.setattr("wsb_engine.curvature.losses.base.BLOCK", 7 * classes)
    assert [len(block.z) for block in in_blocks(z, targets)] == [7] * 7 + [1]
    assert loss.sizes(in_blocks(z, targets)) == sizes
    found = loss.averages(in_blocks(z, targets))
    assert found.loss == pytest.approx(averages.loss, rel=1e-14)
    assert found.accuracy == pytest.approx(averages.accuracy, rel=1e-14)


@pytest.mark.parametrize("classes", [1, 2, 10])
def test_labels_become_rows_when_they_are_read(classes: int) -> None:
    labels, loss = torch.arange(20) % max(classes, 2), automatic(classes)
    targets = Targets(labels, torch.rand(20).double(), partial(loss.targets, logits=classes))
    rows = torch.tensor([3, 0, 19])
    want = labels.double().reshape(-1, 1) if classes == 1 else torch.eye(classes, dtype=torch.float64)[labels]
    assert torch.equal(targets.rows(slice(4, 9)), want[4:9])
    assert torch.equal(targets.rows(rows), want[rows])
    part = targets.part(slice(4, 9), torch.device("cpu"))
    assert torch.equal(part.rows(slice(0, 9)), want[4:9])
    assert torch.equal(part.weights, targets.weights[4:9])
    assert part.y.data_ptr() == targets.y[4:].data_ptr()
