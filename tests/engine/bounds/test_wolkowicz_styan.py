"""The bounds on matrices whose spectra are known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsb_engine.bounds.wolkowicz_styan import wolkowicz_styan

spectra = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30).map(lambda values: np.sort(values)[::-1])


@given(spectra)
def test_no_spectrum_violates_the_bounds(eigenvalues: np.ndarray) -> None:
    n = len(eigenvalues)
    q = float((eigenvalues**2).sum())
    b = wolkowicz_styan(float(eigenvalues.sum()), q, n)
    # s is a root of a difference: it carries the root of the rounding of q/n
    slack = 1e-7 * (1 + np.sqrt(q))
    assert b.lambda_max_lower - slack <= eigenvalues[0] <= b.lambda_max_upper + slack
    assert b.lambda_min_lower - slack <= eigenvalues[-1] <= b.lambda_min_upper + slack


def test_the_upper_bound_is_attained_when_all_but_the_largest_are_equal() -> None:
    eigenvalues = np.array([5.0, 1.0, 1.0, 1.0])
    b = wolkowicz_styan(eigenvalues.sum(), (eigenvalues**2).sum(), 4)
    assert b.lambda_max_upper == pytest.approx(5.0, rel=1e-14)


def test_the_lower_bound_is_attained_when_all_but_the_smallest_are_equal() -> None:
    eigenvalues = np.array([2.0, 2.0, 2.0, -1.0])
    b = wolkowicz_styan(eigenvalues.sum(), (eigenvalues**2).sum(), 4)
    assert b.lambda_max_lower == pytest.approx(2.0, rel=1e-14)
    assert b.lambda_min_lower == pytest.approx(-1.0, rel=1e-14)


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6), st.integers(2, 10**7))
def test_the_upper_bound_is_never_looser_than_the_frobenius_norm(t: float, extra: float, n: int) -> None:
    q = t * t / n + extra
    assert wolkowicz_styan(t, q, n).lambda_max_upper <= np.sqrt(q) * (1 + 1e-9) + 1e-9


@given(spectra, st.floats(0.1, 100))
def test_bounds_scale_with_the_matrix(eigenvalues: np.ndarray, c: float) -> None:
    n, t, q = len(eigenvalues), float(eigenvalues.sum()), float((eigenvalues**2).sum())
    one, scaled = wolkowicz_styan(t, q, n), wolkowicz_styan(c * t, c * c * q, n)
    assert scaled.lambda_max_upper == pytest.approx(c * one.lambda_max_upper, rel=1e-6, abs=1e-6 * c * (1 + q**0.5))


def test_a_matrix_of_order_one_is_its_own_eigenvalue() -> None:
    b = wolkowicz_styan(-3.0, 9.0, 1)
    assert (b.lambda_max_lower, b.lambda_max_upper, b.lambda_min_lower, b.lambda_min_upper) == (-3.0,) * 4


def test_rounding_that_breaks_cauchy_schwarz_is_clamped() -> None:
    b = wolkowicz_styan(3.0, 3.0 - 1e-15, 3)
    assert b.lambda_max_upper == b.lambda_min_lower == 1.0


def test_an_order_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="must"):
        wolkowicz_styan(1.0, 1.0, 0)
