"""What of a series goes into its plots, and what is said of the rest."""

from __future__ import annotations

import re
from array import array
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

import pytest

from service.series.checkpoints import Checkpoint, Density, Series
from service.series.drawing import Drawing, Plot
from service.series.heat import ROWS, map_of
from service.series.lines import lines_of
from service.series.quantities import QUANTITIES, Value
from wsb_engine.presentation.text import clean

LOG_Y = Drawing(log=frozenset({"y"}))


def checkpoint(at: str, number: float | None, lambda_max: Value | None = None, **more: Any) -> Checkpoint:
    values: dict[str, Any] = {
        "analysis": uuid4(),
        "name": None,
        "kind": "epoch",
        "position": at,
        "number": number,
        "learning_rate": None,
        "reliable": True,
        "how": "",
        "scalars": {} if lambda_max is None else {"lambda_max": lambda_max},
        "eigenvalues": (),
        "spectrum": (),
        "is_whole": True,
        "density": None,
    }
    return Checkpoint(**{**values, **more})


def series(*checkpoints: Checkpoint, label: str = "run:a") -> Series:
    return Series(label, checkpoints, is_cut=False, unreadable=0)


def enclosed(middle: float) -> Value:
    return Value(middle, "enclosure", middle - 0.5, middle + 0.5)


def drawn(plot: Plot) -> str:
    assert plot.svg is not None
    return str(plot.svg)


def places(svg: str) -> list[float]:
    return [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', svg)[:-1]]  # without the legend's


def test_checkpoints_stand_at_their_epochs_or_in_their_order() -> None:
    uneven = series(*(checkpoint(str(n), n, enclosed(n)) for n in (1, 2, 11)))
    at = places(drawn(lines_of([uneven], "lambda_max", Drawing())))
    assert at[2] - at[1] == pytest.approx(9 * (at[1] - at[0]), abs=0.1)
    at = places(drawn(lines_of([uneven], "lambda_max", Drawing("order"))))
    assert at[2] - at[1] == pytest.approx(at[1] - at[0], abs=0.1)


def test_a_checkpoint_without_a_number_is_told_and_drawn_in_order() -> None:
    mixed = series(checkpoint("1", 1, enclosed(1)), checkpoint("last", None, enclosed(2)))
    plot = lines_of([mixed], "lambda_max", Drawing())
    assert "they have no number as epoch or step: 1 checkpoint." in plot.notes[0]
    assert len(places(drawn(plot))) == 1
    plot = lines_of([mixed], "lambda_max", Drawing("order"))
    assert (len(places(drawn(plot))), plot.notes) == (2, [])
    unnumbered = series(checkpoint("first", None, enclosed(1)), checkpoint("last", None, enclosed(2)))
    assert len(places(drawn(lines_of([unnumbered], "lambda_max", Drawing())))) == 2


def test_epochs_and_steps_on_one_axis_are_told() -> None:
    by_epoch, by_step = checkpoint("1", 1, enclosed(1)), checkpoint("100", 100, enclosed(1), kind="step")
    plot = lines_of([series(by_epoch), series(by_step, label="run:b")], "lambda_max", Drawing())
    assert plot.notes == ["Some checkpoints are numbered by epoch and others by step, on the same axis."]
    assert "epoch or step" in drawn(plot)


def test_the_description_names_every_run_and_calls_a_bound_a_bound() -> None:
    bounded = checkpoint("2", 2, Value(None, "wolkowicz_styan", 1.0, 9.0))
    plot = lines_of(
        [series(checkpoint("1", 1, enclosed(4)), checkpoint("3", 3, enclosed(5))), series(bounded, label="run:b")],
        "lambda_max",
        Drawing(),
    )
    found = re.search(r"<desc[^>]*>(.*?)</desc>", drawn(plot))
    assert found is not None
    assert found[1] == (
        "a: [3.5, 4.5] at 1 to [4.5, 5.5] at 3, 2 checkpoints; b: bound [1, 9] at 2 to bound [1, 9] at 2, 1 checkpoint."
    )


def test_what_a_report_lacks_is_a_gap() -> None:
    gap = series(*(checkpoint(str(n), n, None if n == 3 else enclosed(n)) for n in (1, 2, 3, 4, 5)))
    assert len(re.findall(r'<path [^>]*class="line s1"', drawn(lines_of([gap], "lambda_max", Drawing())))) == 2


def test_a_run_that_lacks_the_quantity_is_named_and_not_in_the_legend() -> None:
    both = [series(checkpoint("1", 1, enclosed(1))), series(checkpoint("1", 1), label="run:lacking")]
    plot = lines_of(both, "lambda_max", Drawing())
    assert plot.notes == ["No report of lacking has it."]
    assert ">lacking<" not in drawn(plot)


def test_a_quantity_that_no_report_has_is_no_plot() -> None:
    empty = series(checkpoint("1", 1))
    for quantity in QUANTITIES:
        assert lines_of([empty], quantity, Drawing()) == (None, [])


@pytest.mark.parametrize(
    ("rates", "limit", "notes"),
    [
        ((0.5, 0.5), 1, 0),
        ((0.5, 0.4), 2, 0),
        ((0.5, None), 1, 0),
        ((1e-9, 1e-9), 0, 1),
        ((None, None), 0, 0),
        ((5e-324, 5e-324), 0, 0),
    ],
    ids=["shared", "one each", "one without", "far above", "none", "beyond all numbers"],
)
def test_twice_the_inverse_learning_rate_is_drawn_where_it_is_near(
    rates: Sequence[float | None], limit: int, notes: int
) -> None:
    runs = [
        series(checkpoint("1", 1, enclosed(4), learning_rate=rate), label=f"run:{i}") for i, rate in enumerate(rates)
    ]
    plot = lines_of(runs, "lambda_max", Drawing())
    assert len(re.findall(r'class="limit(?: s\d)?"></(?:line|path)>', drawn(plot))) == limit
    assert len([note for note in plot.notes if "2/η" in note]) == notes


def test_only_eigenvalues_have_the_stability_limit() -> None:
    run = series(checkpoint("1", 1, scalars={"loss": Value(1.0, "cross_entropy")}, learning_rate=1.0))
    assert "limit" not in drawn(lines_of([run], "loss", Drawing()))


def test_the_largest_eigenvalues_have_a_line_each() -> None:
    values = [Value(x, "dense") for x in (3.0, 2.0, 1.0)]
    run = series(*(checkpoint(str(n), n, eigenvalues=values[: 4 - n]) for n in (1, 2)))
    svg = drawn(lines_of([run], "eigenvalues", Drawing()))
    assert len(re.findall(r'<path [^>]*class="line s1( faint)?"', svg)) == 2
    assert len(re.findall('class="dot s1 faint"', svg)) == 1  # the third is known once


def cells(svg: str) -> int:
    return sum(corners.count("M") for corners in re.findall(r'<path d="([^"]+)" class="cells"', svg))


def test_a_spectrum_has_a_cell_where_it_has_eigenvalues() -> None:
    run = series(*(checkpoint(str(n), n, spectrum=array("d", [0.0, 0.0, float(n)])) for n in (1, 2)))
    plot = map_of(run, "spectrum", Drawing())
    assert cells(drawn(plot)) == 4
    assert "2 eigenvalues" in drawn(plot)
    assert plot.notes == []


def test_a_partial_spectrum_and_a_missing_one_are_told() -> None:
    run = series(checkpoint("1", 1, spectrum=array("d", [1.0]), is_whole=False), checkpoint("2", 2))
    notes = map_of(run, "spectrum", Drawing()).notes
    assert notes[0].endswith("their reports have none: 1.")
    assert "only the largest eigenvalues" in notes[1]
    assert map_of(series(checkpoint("1", 1)), "spectrum", Drawing()) == (None, [])


def test_a_logarithmic_map_leaves_out_what_is_not_positive_and_says_so() -> None:
    run = series(checkpoint("1", 1, spectrum=array("d", [-1.0, 0.0, 1e-30, 0.1, 1.0])))
    plot = map_of(run, "spectrum", LOG_Y)
    assert cells(drawn(plot)) == 2
    assert plot.notes[0].endswith(": 3 eigenvalues.")
    plot = map_of(series(checkpoint("1", 1, spectrum=array("d", [-1.0]))), "spectrum", LOG_Y)
    assert plot == (None, ["No eigenvalue is positive, as a logarithmic axis needs it."])


def test_a_density_is_dark_at_its_peak_and_covers_the_cells_between_two_nodes() -> None:
    grid, values = array("d", [0.0, 10.0]), array("d", [1.0, 1.0])
    plot = map_of(series(checkpoint("1", 1, density=Density(grid, values))), "density", Drawing())
    [(corners, shade)] = re.findall(r'<path d="([^"]+)" class="cells" fill-opacity="([\d.]+)"', drawn(plot))
    assert (corners.count("M"), shade) == (1, "1")
    heights = [float(pair.split()[1]) for pair in corners.removeprefix("M").split("L")]
    assert max(heights) - min(heights) > 180
    # Four decades below the peak nothing is drawn.
    fallen = Density(array("d", [0.0, 1.0, 10.0]), array("d", [1.0, 1e-9, 1e-9]))
    assert cells(drawn(map_of(series(checkpoint("1", 1, density=fallen)), "density", Drawing()))) < ROWS / 4


@pytest.mark.parametrize("log", [frozenset(), frozenset({"y"})], ids=["linear", "logarithmic"])
@pytest.mark.parametrize(
    "spectrum",
    [[0.0], [1e308, -1e308], [5e-324], [1.0, 1.0], [-1e-300, 1e300], [1.7e308]],
    ids=str,
)
def test_awkward_spectra_are_drawn_or_told(spectrum: list[float], log: frozenset[Any]) -> None:
    run = series(checkpoint("1", 1, spectrum=array("d", sorted(spectrum))))
    plot = map_of(run, "spectrum", Drawing(log=log))
    assert plot.svg is not None or plot.notes
    assert "nan" not in str(plot.svg)
    assert "inf" not in str(plot.svg)


def test_names_of_strangers_make_no_elements() -> None:
    hostile = '"><script>alert(1)</script>\u202e'
    run = series(checkpoint(hostile, 1, enclosed(1), spectrum=array("d", [1.0])), label=f"run:{hostile}")
    for svg in (lines_of([run], "lambda_max", Drawing()).svg, map_of(run, "spectrum", Drawing()).svg):
        assert svg is not None
        assert "<script" not in svg
        assert "\u202e" not in svg
    assert clean("\u202e") in str(lines_of([run], "lambda_max", Drawing()).svg)
