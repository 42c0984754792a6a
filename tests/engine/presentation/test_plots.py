"""`Report.plot`: what it draws of which report, on which axes, and what it leaves alone."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from support.forms import thinned
from support.stored import CASES, require_matplotlib, stored_report

import wsb_engine as wsb
from wsb_engine.presentation.plots import PLOTS
from wsb_engine.report import Interval, NamedBound, Plot, Report

require_matplotlib()

from matplotlib.colors import to_hex  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402


@pytest.fixture(scope="module")
def perceptron() -> Report:
    return stored_report("perceptron")


def without_spectrum(report: Report) -> Report:
    return report.model_copy(update={"spectrum": None})


def labels(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_the_density_comes_before_the_spectrum_and_the_bounds(perceptron: Report) -> None:
    spectrum = perceptron.spectrum
    assert spectrum is not None
    no_density = perceptron.model_copy(update={"spectrum": spectrum.model_copy(update={"density": None})})
    assert perceptron.plot().get_ylabel() == "density"
    assert no_density.plot().get_ylabel() == r"$|\lambda|$"
    assert without_spectrum(perceptron).plot().get_xlabel() == "eigenvalue"


def test_the_density_is_drawn_at_its_numbers_beside_the_enclosure_and_the_bound(perceptron: Report) -> None:
    axes = perceptron.plot(log=False)
    assert perceptron.spectrum is not None
    density = perceptron.spectrum.density
    assert density is not None
    assert perceptron.enclosure is not None
    curve, largest, bound = axes.get_lines()
    assert (list(curve.get_xdata()), list(curve.get_ydata())) == (density.grid, density.values)
    assert largest.get_xdata()[0] == pytest.approx(perceptron.enclosure.lambda_max.upper, rel=1e-12)
    assert bound.get_xdata()[0] == perceptron.named_bounds[0].lambda_max.upper
    assert labels(axes) == [r"$\lambda_{\max}$, enclosure", "Wolkowicz-Styan bound"]


def test_the_bounds_are_drawn_at_their_numbers_with_the_mean_and_the_deviation(perceptron: Report) -> None:
    axes = perceptron.plot(show="bounds")
    assert perceptron.moments is not None
    count, bound = perceptron.model.parameters.count, perceptron.named_bounds[0]
    drawn = {tuple(map(float, line.get_xdata())) for line in axes.get_lines()}
    assert {tuple(dict(bound.lambda_max).values()), tuple(dict(bound.lambda_min).values())} <= drawn
    m = perceptron.moments.trace / count
    s = (perceptron.moments.frobenius_squared / count - m * m) ** 0.5
    vertical = sorted(place[0] for place in drawn if len(place) == 2 and place[0] == place[1])
    assert vertical == pytest.approx([m - s, m, m + s])
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [
        rf"$\lambda_{{\{end}}}$, {name}" for end in ("max", "min") for name in ("enclosure", "Wolkowicz-Styan")
    ]


def test_negative_eigenvalues_are_hollow_triangles_at_their_rank(perceptron: Report) -> None:
    positive, negative = perceptron.plot(show="spectrum").get_lines()[1:3]
    assert perceptron.spectrum is not None
    values = perceptron.spectrum.eigenvalues
    assert list(negative.get_ydata()) == [-value for value in values if value < 0]
    assert list(negative.get_xdata()) == [i + 1 for i, value in enumerate(values) if value < 0]
    assert (positive.get_marker(), negative.get_marker(), negative.get_markerfacecolor()) == ("o", "v", "none")


def test_the_width_of_both_intervals_is_drawn_by_product(perceptron: Report) -> None:
    largest, _ = perceptron.plot(show="convergence").get_lines()
    assert perceptron.enclosure is not None
    steps = perceptron.enclosure.convergence or []
    assert list(largest.get_xdata()) == [step.products for step in steps]
    assert list(largest.get_ydata()) == [step.lambda_max.upper - step.lambda_max.lower for step in steps]


@pytest.mark.parametrize(
    ("show", "axis", "scales"),
    [
        ("density", "y", ("linear", "log", "log")),
        ("spectrum", "y", ("linear", "log", "log")),
        ("convergence", "y", ("linear", "log", "log")),
        ("bounds", "x", ("linear", "linear", "symlog")),
    ],
)
def test_an_axis_is_logarithmic_as_asked(perceptron: Report, show: Plot, axis: str, scales: tuple[str, ...]) -> None:
    drawn = (perceptron.plot(show=show, log=log) for log in (False, None, True))
    assert tuple(getattr(axes, f"get_{axis}scale")() for axes in drawn) == scales


def test_it_draws_on_the_axes_that_it_is_given(perceptron: Report) -> None:
    left, right = Figure().subplots(1, 2)
    assert perceptron.plot(right) is right
    assert right.has_data()
    assert not left.has_data()


def test_it_follows_the_colours_of_the_user(perceptron: Report) -> None:
    import matplotlib as mpl
    from cycler import cycler

    with mpl.rc_context({"axes.prop_cycle": cycler(color=["#123456"])}):
        assert to_hex(perceptron.plot().get_lines()[0].get_color()) == "#123456"


def test_what_a_report_lacks_is_an_error_with_advice() -> None:
    for show in PLOTS:
        with pytest.raises(wsb.OptionsError) as caught:
            stored_report("nothing").plot(show=show)
        assert (caught.value.code, bool(caught.value.advice)) == ("plot_unavailable", True)


def test_a_plot_that_does_not_exist_is_an_error_with_those_that_do(perceptron: Report) -> None:
    with pytest.raises(wsb.OptionsError, match="Give density, spectrum, bounds, convergence"):
        perceptron.plot(show="pie")  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("name", thinned(["_hidden", r"$\frac{1$", "日本", "50 $ or 60 $", r"\$x"], 2))
@pytest.mark.filterwarnings("ignore:Glyph .* missing from font:UserWarning")
def test_the_name_of_a_bound_is_no_formula(perceptron: Report, name: str) -> None:
    ends = Interval(lower=0.0, upper=1.0)
    bound = NamedBound(
        name=name, assumptions=[], kind="deterministic", failure_probability=None, lambda_max=ends, lambda_min=ends
    )
    report = perceptron.model_copy(update={"bounds_list": [bound]})
    for show in PLOTS:
        report.plot(show=show).figure.draw_without_rendering()
    visible = labels(report.plot(show="density"))[1].strip().replace(r"\$", "$")
    assert visible == f"{name} bound".replace("\\", "∖")


@pytest.mark.slow
def test_nothing_of_pyplot_is_loaded() -> None:
    program = f"""
import json, sys
import wsb
assert "matplotlib" not in sys.modules
report = wsb.Report.model_validate(json.load(open({str(CASES / "perceptron.json")!r}))["report"])
assert "matplotlib" not in sys.modules
report._repr_html_()
assert "matplotlib" not in sys.modules
report.plot().figure.draw_without_rendering()
print([name for name in ("matplotlib.pyplot", "torch", "numpy.testing") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_without_matplotlib_one_sentence_says_what_to_install() -> None:
    program = f"""
import json, sys
sys.modules["matplotlib"] = None
import wsb
report = wsb.Report.model_validate(json.load(open({str(CASES / "perceptron.json")!r}))["report"])
try:
    report.plot()
except wsb.OptionsError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == (
        "Plots are drawn by matplotlib, which is not installed [matplotlib_missing] pip install 'wsb-sharpness[plot]'\n"
    )
