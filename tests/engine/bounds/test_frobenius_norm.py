"""The bound from the Frobenius norm alone, against random spectra."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from wsb_engine.bounds.bound import Quantities
from wsb_engine.bounds.frobenius_norm import FROBENIUS_NORM, frobenius_norm
from wsb_engine.bounds.wolkowicz_styan import WOLKOWICZ_STYAN

spectra = arrays(np.float64, st.integers(2, 20), elements=st.floats(-1e3, 1e3))


@given(spectra, st.data())
def test_no_spectrum_violates_the_bounds(eigenvalues: np.ndarray, data: st.DataObject) -> None:
    norm = math.hypot(*eigenvalues) * (1 + 1e-12)
    low, high = sorted(data.draw(st.tuples(*[st.sampled_from(list(eigenvalues))] * 2)))
    for ritz in (None, (high, low)):
        b = frobenius_norm(norm, ritz)
        assert b.lambda_max_lower <= eigenvalues.max() <= b.lambda_max_upper
        assert b.lambda_min_lower <= eigenvalues.min() <= b.lambda_min_upper


def test_ritz_values_are_the_inner_ends() -> None:
    b = frobenius_norm(5.0, (-3.0, 4.0))
    assert (b.lambda_max_lower, b.lambda_max_upper, b.lambda_min_lower, b.lambda_min_upper) == (4.0, 5.0, -5.0, -3.0)


@pytest.mark.parametrize(("trace", "evaluated"), [((1.0, 1.0), (True, False)), (None, (False, True))])
def test_with_a_trace_the_other_bound_is_evaluated_which_is_never_wider(
    trace: tuple[float, float] | None, evaluated: tuple[bool, bool]
) -> None:
    known = Quantities(order=3, norm=(2.0, 2.0), trace=trace)
    found = WOLKOWICZ_STYAN.evaluate(known), FROBENIUS_NORM.evaluate(known)
    assert tuple(bound is not None for bound in found) == evaluated
