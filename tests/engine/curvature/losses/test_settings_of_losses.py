"""Weights, smoothing, positions and labels by themselves against mpmath, at logits of up to ±1000."""

from __future__ import annotations

import math
from collections.abc import Iterator

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor

from wsb_engine.curvature.losses import Loss, Output, configured
from wsb_engine.options import LossKind, Options

UNIT = 2.0**-53
MARGINS = [0.0, 3.0, 40.0, 700.0, 1000.0]
WEIGHTS = (0.5, 3.0, 0.0)
DIGITS = 1000


def softmax_cases() -> Iterator[tuple[Tensor, Tensor]]:
    """Logits of three classes of which one leads by the margin, and each label."""
    rng = np.random.default_rng(0)
    for margin in MARGINS:
        for label in range(3):
            z = rng.normal(size=3) * 0.3
            z[0] += margin
            yield torch.from_numpy(z)[None], torch.tensor([label])


def of_row(
    z: Tensor, label: int, weights: tuple[float, ...], smoothing: float
) -> tuple[list, mpmath.matrix, mpmath.mpf]:
    """Gradient, Hessian and value of torch's formula with reduction sum, as written."""
    values = [mpmath.mpf(v) for v in z.tolist()]
    e = [mpmath.exp(v) for v in values]
    p, share = [each / mpmath.fsum(e) for each in e], mpmath.mpf(smoothing)
    v = [mpmath.mpf(w) for w in weights]
    targets = [(1 - share) * v[j] * (j == label) + share / 3 * v[j] for j in range(3)]
    s = mpmath.fsum(targets)
    value = -mpmath.fsum(t * mpmath.log(q) for t, q in zip(targets, p, strict=True))
    S = mpmath.matrix(3, 3)
    for i in range(3):
        for j in range(3):
            S[i, j] = s * ((p[i] if i == j else 0) - p[i] * p[j])
    return [s * q - t for q, t in zip(p, targets, strict=True)], S, value


def loss_of(kind: LossKind, output: Output, **options: object) -> Loss:
    return configured(kind, Options(**options), output)


def off(found: float, want: mpmath.mpf) -> float:
    return float(abs(mpmath.mpf(found) - want))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1 - 1e-9, 1.0])
def test_weighted_and_smoothed_rows_lose_no_digits(smoothing: float) -> None:
    loss = loss_of("cross_entropy", Output((3,)), class_weights=WEIGHTS, label_smoothing=smoothing)
    # The mean divides by the weights, so they are brought near 1 by a power of two.
    weights = tuple(weight * 2.0 ** -math.frexp(max(WEIGHTS))[1] for weight in WEIGHTS)
    for z, y in softmax_cases():
        rows = loss.targets(y, 3)
        at, value = loss.derivatives(z, rows), float(loss.values(z, rows))
        bounds = at.rounding(z, rows, torch.zeros_like(z))
        assert bounds is not None
        with mpmath.workdps(DIGITS):
            gradient, S, want = of_row(z[0], int(y), weights, smoothing)
            assert off(value, want) <= (64 + 2e3) * UNIT * float(want)  # e^d of a rounded d
            size = float(max(abs(S[i, j]) for i in range(3) for j in range(3)))
            for i in range(3):
                assert off(float(at.gradient[0, i]), gradient[i]) <= float(bounds.gradient[0, i]) + 5e-324
                for j in range(3):
                    assert off(float(at.curvature()[0, i, j]), S[i, j]) <= (64 + 2e3) * UNIT * size + 5e-324


@pytest.mark.parametrize("margin", [*MARGINS, *(-each for each in MARGINS)])
@pytest.mark.parametrize("y", [0.0, 1.0, 0.3])
def test_labels_by_themselves_lose_no_digits(margin: float, y: float) -> None:
    loss = loss_of("multilabel", Output((2,)), pos_weight=(5.0, 0.25))
    z = torch.tensor([[margin, -margin]], dtype=torch.float64)
    rows = loss.targets(torch.full((1, 2), y, dtype=torch.float64), 2)
    at = loss.derivatives(z, rows)
    bounds = at.rounding(z, rows, torch.zeros_like(z))
    assert bounds is not None
    with mpmath.workdps(DIGITS):
        total = mpmath.mpf(0)
        for j, weight in enumerate((5.0, 0.25)):
            p = 1 / (1 + mpmath.exp(-mpmath.mpf(float(z[0, j]))))
            b, c = mpmath.mpf(weight) * mpmath.mpf(y) / 2, (1 - mpmath.mpf(y)) / 2
            total += -b * mpmath.log(p) - c * mpmath.log(1 - p)
            assert off(float(at.gradient[0, j]), c * p - b * (1 - p)) <= float(bounds.gradient[0, j])
            second = (b + c) * p * (1 - p)
            assert off(float(at.diagonal[0, j]), second) <= float(bounds.curvature[0]) * float(second) + 5e-324
        assert off(float(loss.values(z, rows)), total) <= 64 * UNIT * float(total)


def positions(axis: int) -> tuple[Loss, Tensor, Tensor]:
    """A loss of four positions with its classes on an axis, logits and rows."""
    sizes = (4, 3) if axis == 1 else (3, 2, 2)
    loss = loss_of(
        "token_cross_entropy",
        Output(sizes, axis if axis == 1 else 0, 4),
        class_weights=(0.5, 3.0, 1.0),
        label_smoothing=0.1,
    )
    generator = torch.Generator().manual_seed(axis)
    z = 3 * torch.randn(2, 12, generator=generator, dtype=torch.float64)
    y = torch.tensor([[0, 2, -1, 1], [-1, -1, 2, 0]])
    return loss, z, loss.targets(y, 12)


@pytest.mark.parametrize("axis", [0, 1])
def test_the_blocks_of_positions_are_in_the_order_of_the_logits(axis: int) -> None:
    loss, z, y = positions(axis)
    at = loss.derivatives(z, y)
    for sample in range(2):

        def value(logits: Tensor, sample: int = sample) -> Tensor:
            return loss.values(logits.unsqueeze(0), y[sample : sample + 1]).sum()

        want = torch.autograd.functional.hessian(value, z[sample])
        gradient = torch.autograd.functional.jacobian(value, z[sample])
        torch.testing.assert_close(at.gradient[sample], gradient, rtol=1e-13, atol=1e-14)
        torch.testing.assert_close(at.curvature()[sample], want, rtol=1e-13, atol=1e-14)
        torch.testing.assert_close(at.diagonal[sample], want.diagonal(), rtol=1e-13, atol=1e-14)
        factor = at.factor()[sample]
        torch.testing.assert_close(factor.T @ factor, want, rtol=1e-13, atol=1e-14)
        W = torch.randn(12, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        torch.testing.assert_close(at.factor_times(W)[sample], factor @ W, rtol=1e-12, atol=1e-13)
    r = torch.randn(12, 3, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    products = torch.einsum("bij,jmb->imb", at.curvature(), r)
    torch.testing.assert_close(at.column_product(2.0)(r.clone()), 2 * products, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("axis", [0, 1])
def test_positions_that_do_not_count_have_no_gradient_and_no_curvature(axis: int) -> None:
    loss, z, y = positions(axis)
    at = loss.derivatives(z, y)
    for values in (at.gradient, at.diagonal):
        by_class = values.view(2, 4, 3) if axis == 1 else values.view(2, 3, 4).transpose(1, 2)
        assert (by_class[0, 2] == 0).all()
        assert (by_class[1, :2] == 0).all()
        assert (by_class[0, 0] != 0).all()


@pytest.mark.parametrize("axis", [0, 1])
def test_the_norm_of_a_blocked_curvature_is_bounded(axis: int) -> None:
    loss, z, y = positions(axis)
    at = loss.derivatives(z, y)
    bounds = at.rounding(z, y, torch.full_like(z, 1e-12))
    assert bounds is not None
    A, B = (torch.randn(2, 12, 6, generator=torch.Generator().manual_seed(n), dtype=torch.float64) for n in (0, 1))
    size = torch.linalg.matrix_norm(A.transpose(1, 2) @ at.curvature().abs() @ B)
    assert (size <= bounds.total * bounds.norm(A.norm(dim=2), B.norm(dim=2))).all()
    moved = loss.derivatives(z + 1e-12 * torch.randn_like(z).sign(), y)
    assert ((moved.gradient - at.gradient).abs() <= bounds.gradient).all()


def test_the_squared_error_is_that_of_torch_with_bounds_on_its_rounding() -> None:
    loss = loss_of("squared_error", Output((3,)))
    z, y = (torch.randn(4, 3, generator=torch.Generator().manual_seed(n), dtype=torch.float64) for n in (0, 1))
    at = loss.derivatives(z, y)
    assert loss.values(z, y).mean().item() == pytest.approx(torch.nn.functional.mse_loss(z, y).item(), rel=1e-14)
    bounds = at.rounding(z, y, torch.full_like(z, 1e-10))
    assert bounds is not None
    moved = loss.derivatives(z + 1e-10 * torch.ones_like(z), y)
    assert ((moved.gradient - at.gradient).abs() <= bounds.gradient).all()
    assert torch.equal(at.curvature(), 2 / 3 * torch.eye(3, dtype=torch.float64).expand(4, 3, 3))


@pytest.mark.parametrize(
    ("kind", "output", "options", "want"),
    [
        ("cross_entropy", Output((3,)), {}, math.log(3)),
        ("token_cross_entropy", Output((4, 3), 1, 4), {}, math.log(3)),
        ("multilabel", Output((4,)), {"pos_weight": 3}, 3 * math.log(2)),
        ("squared_error", Output((4,)), {}, None),
    ],
)
def test_the_loss_of_guessing_is_that_of_equal_probabilities(
    kind: LossKind, output: Output, options: dict[str, object], want: float | None
) -> None:
    assert loss_of(kind, output, **options).guess(math.prod(output.sizes)) == want
