"""Top eigenvalues with residuals and certificates, and the density with its moments, on matrices that are known."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from wsb_engine.bounds.certificates import ExactMoments, Premises
from wsb_engine.bounds.rounding import Rounding
from wsb_engine.spectrum.density import density
from wsb_engine.spectrum.enclosure import Enclosing
from wsb_engine.spectrum.lanczos import Lanczos
from wsb_engine.spectrum.top import TopEigenvalues, top_eigenvalues

UNIT = 2.0**-53
CPU = torch.device("cpu")


def symmetric(eigenvalues: torch.Tensor, seed: int = 0) -> torch.Tensor:
    n = len(eigenvalues)
    Q = torch.linalg.qr(torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))[0]
    A = Q @ torch.diag(eigenvalues) @ Q.T
    return (A + A.T) / 2


def top(A: torch.Tensor, count: int, *, exact: bool = True, products: int = 300) -> TopEigenvalues:
    """In the units of A."""
    lanczos = Lanczos(lambda v: A @ v, len(A), CPU, 0, UNIT)
    found = top_eigenvalues(lanczos, count, max_products=products, failure_probability=1e-6, seed=0)
    moments = ExactMoments(float(A.trace()), float(A.square().sum())) if exact else None
    rounding = Rounding("measured", 0.0, relative_square_error=1e3 * UNIT)
    enclosing = Enclosing(lanczos, Premises(rounding, moments, 1e-6, 1e-6).scaled(lanczos.scaling))
    bounds = enclosing.upper_bounds(len(found.eigenvalues))
    return replace(found, upper_bounds=bounds).divided(lanczos.scaling)


def test_the_largest_eigenvalues_are_found_with_their_residuals() -> None:
    eigenvalues = torch.cat([torch.arange(20.0, 8.0, -1.0), 0.1 * torch.randn(188)]).double()
    A = symmetric(eigenvalues)
    found = top(A, 10)
    want = torch.linalg.eigvalsh(A).flip(0)[:10]
    assert found.converged
    torch.testing.assert_close(found.eigenvalues, want, rtol=1e-12, atol=0)
    assert float(found.residuals.max()) < 1e-7
    for value, bound in zip(want.tolist(), found.upper_bounds, strict=True):
        assert bound is not None
        assert value - 1e-10 <= bound <= value + 1e-6


def test_certificates_never_lie_below_the_eigenvalue() -> None:
    for seed in range(20):
        eigenvalues = torch.randn(30, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        A = symmetric(eigenvalues, seed)
        found = top(A, 5, products=9)
        want = torch.linalg.eigvalsh(A).flip(0)[:5].tolist()
        for value, bound in zip(want, found.upper_bounds, strict=True):
            assert bound is None or bound >= value - 1e-15


def test_copies_of_a_repeated_eigenvalue_are_all_found() -> None:
    eigenvalues = torch.cat([torch.tensor([9.0, 7.0, 7.0, 7.0, 5.0]), torch.zeros(395)]).double()
    found = top(symmetric(eigenvalues), 8)
    assert found.converged
    assert found.eigenvalues.tolist() == pytest.approx([9, 7, 7, 7, 5, 0, 0, 0], abs=1e-8)
    assert float(found.residuals.max()) < 1e-7


def test_order_is_algebraic_not_by_magnitude() -> None:
    A = symmetric(torch.tensor([2.0, 1.0, 0.5, -9.0, -10.0], dtype=torch.float64))
    assert top(A, 2).eigenvalues.tolist() == pytest.approx([2.0, 1.0])


def test_asking_for_more_eigenvalues_than_there_are_returns_all() -> None:
    A = symmetric(torch.tensor([3.0, 1.0, -1.0], dtype=torch.float64))
    found = top(A, 10)
    assert found.eigenvalues.tolist() == pytest.approx([3.0, 1.0, -1.0])
    assert found.converged


def test_running_out_of_products_is_admitted() -> None:
    A = symmetric(torch.linspace(-1, 1, 200).double())
    assert not top(A, 10, products=15).converged


def test_without_moments_nothing_is_certified() -> None:
    A = symmetric(torch.linspace(-1, 1, 50).double())
    assert top(A, 3, exact=False, products=30).upper_bounds == [None] * 3


def test_the_density_integrates_to_one_and_has_the_moments() -> None:
    eigenvalues = torch.cat([torch.tensor([5.0, 3.0]), 0.3 * torch.randn(398)]).double()
    A = symmetric(eigenvalues)
    found = density(lambda v: A @ v, len(A), CPU, seed=0, unit=UNIT)
    integral = torch.trapezoid(found.values, found.grid)
    assert float(integral) == pytest.approx(1.0, abs=1e-6)
    assert abs(found.mean - float(A.trace()) / len(A)) <= 4 * found.mean_error
    assert abs(found.second_moment - float(A.square().sum()) / len(A)) <= 4 * found.second_moment_error
    drawn = torch.trapezoid(found.values * found.grid, found.grid)
    assert float(drawn) == pytest.approx(found.mean, abs=1e-6)
    drawn_second = torch.trapezoid(found.values * found.grid**2, found.grid)
    assert float(drawn_second) == pytest.approx(found.second_moment + found.sigma**2, rel=1e-6)


def test_a_single_value_is_a_narrow_peak() -> None:
    found = density(lambda v: 2.0 * v, 40, CPU, seed=0, unit=UNIT)
    assert found.mean == pytest.approx(2.0)
    assert torch.isfinite(found.values).all()
