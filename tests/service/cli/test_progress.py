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
        "enclosure 10%",
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
    assert capsys.readouterr().err == "enclosure 10%\n"


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
