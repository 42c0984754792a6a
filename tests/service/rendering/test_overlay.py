from __future__ import annotations

import re
from xml.etree import ElementTree

from markupsafe import Markup

from service.rendering import overlay, standalone
from service.rendering.overlay import Axes, Point, Run
from service.rendering.svg import Caption

AXES = Axes("epoch", "λ_max")
CAPTION = Caption("k", "A title", "What it shows.")


def run(*values: float | None, style: int = 1, label: str = "a") -> Run:
    """A run of plain numbers at 1, 2, …; None is a gap."""
    return Run(label, style, [[None if v is None else Point(x, v) for x, v in enumerate(values, start=1)]])


def svg_of(*runs: Run, axes: Axes = AXES, limit: float | None = None) -> Markup:
    found = overlay.overlay(runs, axes, caption=CAPTION, limit=limit).svg
    assert found is not None
    return found


def kinds(svg: Markup) -> list[str]:
    return re.findall(r'class="([^"]+)"', svg)


def texts(svg: Markup) -> list[str]:
    return ["".join(each.itertext()) for each in ElementTree.fromstring(svg).iter("text")]  # noqa: S314 - ours


def test_a_gap_breaks_the_line_and_is_no_zero() -> None:
    svg = svg_of(run(3.0, 3.1, None, 3.2, 3.3))
    assert kinds(svg).count("line s1") == 3  # two pieces, and the legend's
    assert "0" not in texts(svg)


def test_enclosures_have_a_band_and_bounds_only_a_bar() -> None:
    enclosed = Run("a", 1, [[Point(1, 2.0, 1.0, 3.0), Point(2, 2.0, 1.0, 3.0)]])
    bounded = Run("b", 2, [[Point(1, None, 1.0, 3.0), Point(2, None, 1.0, 3.0)]])
    both = kinds(svg_of(enclosed, bounded))
    assert both.count("area s1") == 1
    assert both.count("dot s1") == 3  # one of them in the legend
    assert (both.count("bound s2"), "area s2" in both) == (6, False)
    assert both.count("dot s2") == both.count("line s2") == 1
    assert "only bounded" in texts(svg_of(bounded))
    assert "only bounded" not in texts(svg_of(enclosed))


def test_a_logarithmic_axis_leaves_out_what_is_not_positive_and_counts_it() -> None:
    drawn = overlay.overlay([run(-1.0, 0.0, 1.0, 10.0)], Axes("epoch", "y", log_y=True), caption=CAPTION)
    assert drawn.left_out == 2
    assert drawn.svg is not None
    assert kinds(drawn.svg).count("dot s1") == 3
    assert overlay.overlay([run(-1.0)], Axes("epoch", "y", log_y=True), caption=CAPTION) == (None, 1, False)


def test_an_interval_that_reaches_below_a_logarithmic_axis_ends_at_its_bottom() -> None:
    lowest = Run("a", 1, [[Point(1, 2.0, -2.0, 6.0), Point(2, 5.0, 4.0, 6.0)]])
    svg = svg_of(lowest, axes=Axes("epoch", "y", log_y=True))
    area = re.search(r'd="M([^"]+)" class="area s1"', svg)
    assert area is not None
    assert max(float(pair.split()[1]) for pair in area[1].split("L")) == 220.0


def test_equal_ratios_are_equal_distances_on_a_logarithmic_axis() -> None:
    svg = svg_of(run(1.0, 10.0, 100.0), axes=Axes("epoch", "y", log_y=True))
    y = [float(each) for each in re.findall(r'cy="([\d.]+)"', svg)[:3]]
    assert abs((y[0] - y[1]) - (y[1] - y[2])) < 0.02


def test_a_narrow_logarithmic_axis_still_has_numbers() -> None:
    svg = svg_of(run(1.21, 1.22, 1.23), axes=Axes("epoch", "y", log_y=True))
    assert sum(text.startswith("1.2") for text in texts(svg)) >= 2


def test_there_is_no_tick_between_two_epochs() -> None:
    assert [text for text in texts(svg_of(run(5.0, 6.0))) if text in ("1", "1.5", "2")] == ["1", "2"]


def test_a_common_limit_is_drawn_once_and_named() -> None:
    svg = svg_of(run(1.0, 2.0), run(2.0, 3.0, style=2, label="b"), limit=4.0)
    assert re.findall(r'<line [^>]*class="limit"', svg).__len__() == 1
    assert "2/η" in texts(svg)


def test_the_limit_of_one_run_has_its_colour_and_follows_a_schedule() -> None:
    scheduled = Run("a", 3, run(1.0, 2.0, 3.0).lines, limits=[(1, 2.0), (2, 4.0), (3, 4.0)])
    [drawn] = re.findall(r'd="([^"]+)" class="limit s3"', svg_of(scheduled))
    assert drawn.count("L") == 2
    assert "2/η of the run" in texts(svg_of(scheduled))


def test_eight_runs_differ_in_colour_and_in_the_shape_of_their_markers() -> None:
    marks = set()
    for style in range(1, overlay.STYLES + 1):
        svg = svg_of(run(1.0, style=style))
        found = re.search(rf'<(circle|polygon|rect)([^>]*)class="dot s{style}( hollow)?"', svg)
        assert found is not None
        corners = found[2].count(",")
        marks.add((found[1], corners, bool(found[3])))
    assert len(marks) == overlay.STYLES


def test_nothing_of_the_legend_lies_on_the_axes() -> None:
    runs = [run(1.0, 2.0, style=i, label=f"run number {i}") for i in range(1, 9)]
    root = ElementTree.fromstring(svg_of(*runs))  # noqa: S314 - ours
    height = float(root.attrib["viewBox"].split()[3])
    places = [float(each.attrib["y"]) for each in root.iter("text") if "run number" in "".join(each.itertext())]
    assert len(places) == 8
    assert min(places) > 260
    assert max(places) < height


def test_a_name_that_is_too_long_is_cut() -> None:
    assert any(text.endswith("…") for text in texts(svg_of(run(1.0, label="x" * 200))))


def test_many_points_are_thinned_and_it_is_said() -> None:
    long = run(*[float(i) for i in range(1, 10_001)])
    drawn = overlay.overlay([long, long], AXES, caption=CAPTION)
    assert drawn.is_thinned
    assert drawn.svg is not None
    assert len(drawn.svg) < 100_000
    assert not overlay.overlay([run(1.0, 2.0)], AXES, caption=CAPTION).is_thinned


def test_a_doubtful_point_is_marked_and_explained() -> None:
    svg = svg_of(Run("a", 1, [[Point(1, 2.0, is_doubtful=True), Point(2, 2.0)]]))
    assert kinds(svg).count("doubt") == 2
    assert "a check has failed" in texts(svg)


def test_cells_of_one_shade_are_drawn_as_one() -> None:
    axes = Axes("epoch", "λ")
    svg = overlay.columns(["1"], [[0.0, 1.0, 1.0, 0.5]], (0.0, 4.0), axes, caption=CAPTION, ramp=("0", "1"))
    drawn = re.findall(r'<path d="([^"]+)" class="cells" fill-opacity="([\d.]+)"', svg)
    assert [(shade, corners.count("M")) for corners, shade in drawn] == [("0.5", 1), ("1", 1)]


def test_a_plot_as_a_file_has_its_colours_and_nothing_else_to_load() -> None:
    written = standalone.document(svg_of(run(1.0, 2.0), limit=1.5))
    root = ElementTree.fromstring(written.encode())  # noqa: S314 - ours
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert float(root.attrib["width"]) == 800
    style = root.find("{http://www.w3.org/2000/svg}style")
    assert style is not None
    assert style.text is not None
    assert "var(" not in style.text
    assert "#0063a3" in style.text
    assert not re.search(r"https?:(?!//www\.w3\.org/2000/svg)|url\(|@import|<script", written)
