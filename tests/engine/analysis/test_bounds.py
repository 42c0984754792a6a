"""The list of named bounds in a report."""

from __future__ import annotations

import numpy as np
import pytest
from support.forms import crossed
from support.golden import NAMES, Golden

import wsb_engine as wsb
from wsb_engine.bounds import registry
from wsb_engine.bounds.bound import Bound, ExtremeBounds
from wsb_engine.bounds.wolkowicz_styan import WOLKOWICZ_STYAN


def analysed(name: str = "deep_tanh", **options: object) -> wsb.Report:
    case = Golden(name)
    return wsb.analyze(wsb.load_model(case.onnx()), wsb.Batch(case.x, case.y), wsb.Options(**options))


@pytest.mark.parametrize(("name", "moments"), crossed(NAMES, ["closed_form", "basis", "probes"]))
def test_every_bound_of_the_list_holds(name: str, moments: str) -> None:
    eigenvalues = Golden(name).eigenvalues
    slack = 1e-9 * np.abs(eigenvalues).max()
    bounds = analysed(name, moments=moments, enclosure=False).bounds_list
    assert bounds
    for bound in bounds:
        assert bound.lambda_max.lower - slack <= eigenvalues[0] <= bound.lambda_max.upper + slack
        assert bound.lambda_min.lower - slack <= eigenvalues[-1] <= bound.lambda_min.upper + slack


def test_exact_moments_give_the_wolkowicz_styan_bound_at_both_paths() -> None:
    report = analysed()
    assert report.bounds_list is not None
    assert report.bounds is not None
    (bound,) = report.bounds_list
    assert (bound.name, bound.kind, bound.failure_probability) == ("wolkowicz_styan", "deterministic", None)
    assert bound.lambda_max == report.bounds.wolkowicz_styan.lambda_max
    assert bound.lambda_min == report.bounds.wolkowicz_styan.lambda_min
    assert bound.assumptions == [
        "The trace and the Frobenius norm of H are exact but for rounding.",
        "A running error analysis bounds every rounding error.",
    ]


def test_probes_bound_the_norm_but_for_their_failure_probability() -> None:
    report = analysed(moments="probes", failure_probability=1e-6)
    assert report.bounds_list is not None
    assert report.bounds is not None
    assert report.moments is not None
    (bound,) = report.bounds_list
    assert (bound.name, bound.kind, bound.failure_probability) == ("frobenius_norm", "probabilistic", 5e-7)
    assert bound.lambda_max.upper == -bound.lambda_min.lower == report.moments.frobenius_squared**0.5
    assert bound.lambda_max == report.bounds.wolkowicz_styan.lambda_max
    assert bound.assumptions[0] == "Products with independent Gaussian vectors bound the Frobenius norm of H."


def test_a_bound_in_float32_is_probabilistic_even_from_exact_moments() -> None:
    report = analysed(dtype="float32", failure_probability=1e-6)
    assert report.bounds_list is not None
    (bound,) = report.bounds_list
    assert (bound.name, bound.kind, bound.failure_probability) == ("wolkowicz_styan", "probabilistic", 5e-7)
    assert bound.assumptions[1] == "Products with independent Gaussian vectors bound the rounding errors of float32."


def test_the_list_is_empty_without_moments() -> None:
    report = analysed(moments="none")
    assert (report.bounds, report.bounds_list, report.named_bounds) == (None, [], [])


def test_a_bound_that_is_false_fails_the_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    # Both intervals are sound as such; only a comparison over the whole list can find the false one.
    false = Bound("false", (), lambda known: ExtremeBounds(-known.norm[1], 0.0, 0.0, known.norm[1]))
    monkeypatch.setattr(registry, "BOUNDS", (WOLKOWICZ_STYAN, false))
    failed = [check.name for check in analysed(spectrum="dense").failed_checks]
    assert failed == ["enclosure_meets_bound", "lambda_max_within_bound", "lambda_min_within_bound"]


def test_names_are_distinct_and_can_be_part_of_a_path() -> None:
    names = [bound.name for bound in registry.BOUNDS]
    assert len(set(names)) == len(names)
    assert all(name.isidentifier() and name.islower() for name in names)


def test_the_closest_interval_about_lambda_max_is_the_enclosure_or_the_narrowest_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wide = Bound("wide", (), lambda known: ExtremeBounds(-2 * known.norm[1], 2 * known.norm[1], -9.0, 9.0))
    monkeypatch.setattr(registry, "BOUNDS", (wide, WOLKOWICZ_STYAN))
    enclosed, bounded = analysed(), analysed(enclosure=False)
    nothing = analysed(moments="none")
    assert enclosed.enclosure is not None
    assert enclosed.lambda_max == ("enclosure", enclosed.enclosure.lambda_max)
    assert bounded.lambda_max is not None
    assert bounded.bounds is not None
    source, interval = bounded.lambda_max
    assert (source, interval.kind) == ("wolkowicz_styan", "deterministic")
    assert (interval.lower, interval.upper) == tuple(dict(bounded.bounds.wolkowicz_styan.lambda_max).values())
    assert nothing.lambda_max is not None
    assert nothing.lambda_max.source == "enclosure"
    assert nothing.model_copy(update={"enclosure": None}).lambda_max is None
