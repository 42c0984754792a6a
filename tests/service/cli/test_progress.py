"""What the command tells while an analysis runs."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest

from service.cli import progress
from service.cli.progress import shown_progress

END = {"lower": 1.5, "upper": 2.5, "relative_gap": None, "kind": "probabilistic", "failure_probability": 1e-6}


def message(upper: float = 2.5, products: int = 4, **more: Any) -> dict[str, Any]:
    enclosure = {"lambda_max": {**END, "upper": upper}, "lambda_min": END, "hessian_vector_products": products}
    return {"phase": "enclosure", "fraction": 0.1, "enclosure": enclosure, **more}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which a test moves on."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_what_is_certified_is_told_in_a_line_now_and_then(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with shown_progress() as sink:
        for second in range(31):
            clock[0] = 100.0 + second
            sink(message(upper=4 - second / 16, products=second))
        clock[0] += 100
        sink(message(upper=2.125, products=30))  # nothing new
    assert capsys.readouterr().err.splitlines() == [
        "enclosure",
        "so far: λ_max in [1.5, 3.375] after 10 products",
        "so far: λ_max in [1.5, 2.75] after 20 products",
        "so far: λ_max in [1.5, 2.125] after 30 products",
    ]


@pytest.mark.parametrize("enclosure", [None, "all", {}, {"lambda_max": END}, message(upper=1.0)["enclosure"]])
def test_what_is_no_enclosure_is_not_told(
    clock: list[float], capsys: pytest.CaptureFixture[str], enclosure: Any
) -> None:
    with shown_progress() as sink:
        clock[0] += 60
        sink(message() | {"enclosure": enclosure})
    assert capsys.readouterr().err == "enclosure\n"


def test_a_terminal_shows_it_in_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal)
    with shown_progress() as sink:
        sink(message())
    assert "λ_max in [1.5, 2.5] after 4 products" in terminal.getvalue()


def test_a_terminal_shows_no_percentage_of_what_nobody_can_count(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    for name, value in (("COLUMNS", "160"), ("TERM", "xterm")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stderr", terminal)
    with shown_progress() as sink:
        sink({"phase": "load"})
    assert "load" in terminal.getvalue()
    assert "%" not in terminal.getvalue()


SECONDS = {"setup": 1.0, "loss": 1.0, "enclosure": 8.0, "spectrum": 10.0}
PHASES = [{"name": name, "operations": 1, "bytes": 1, "seconds": seconds} for name, seconds in SECONDS.items()]
SIZES = {"products": 60, "rate": 1, "operations": 1, "bytes": 1, "seconds": 20.0}
ESTIMATE = {"device": "cpu", "dtype": "float64", **SIZES, "phases": PHASES, "left_out": []}


def test_each_phase_is_a_line_with_its_place_and_what_is_left(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    steps = [(0, "start"), (1, "load"), (2, "setup"), (3, "loss"), (5, "parity"), (5, "enclosure"), (21, "spectrum")]
    with shown_progress() as sink:
        for second, phase in steps:
            clock[0] = 100.0 + second
            known = {} if phase in ("start", "load", "setup") else {"estimate": ESTIMATE}
            for fraction in (0.0, 0.5, 1.0):
                sink({"phase": phase, "fraction": fraction, **known})
    assert capsys.readouterr().err.splitlines() == [
        "start",
        "load",
        "setup",
        "2 of 4: loss, about 19 s left",
        "parity, about 18 s left",
        "3 of 4: enclosure, about 18 s left",
        "4 of 4: spectrum, about 10 s left",
    ]


def test_products_are_counted_against_what_is_expected(clock: list[float]) -> None:
    follower = progress.Follower()
    told = {"phase": "enclosure", "fraction": 0.5, "hessian_vector_products": 30, "estimate": ESTIMATE}
    assert follower.step(told) == ("1 of 4: enclosure", 0.5, "30 of about 60 products, about 16 s left")
    clock[0] += 20  # slower than the estimate says
    assert follower.step({**told, "hessian_vector_products": 61}).detail == "61 products, about 32 s left"
    assert follower.step({"phase": "spectrum", "fraction": 1.0}).detail == "about 2 s left"
