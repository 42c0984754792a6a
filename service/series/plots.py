"""Chooses the plot of a quantity, on a page or as a file."""

from __future__ import annotations

from collections.abc import Sequence

from service.rendering import overlay, standalone
from service.rendering.svg import Caption
from service.series.checkpoints import Series
from service.series.drawing import Drawing, Plot
from service.series.heat import map_of
from service.series.lines import lines_of
from service.series.quantities import TITLES, Shown


def plot_of(series: Sequence[Series], quantity: Shown, drawing: Drawing) -> Plot:
    """Draw a quantity of all series over common axes, or a heat map of the first."""
    match quantity:
        case "spectrum" | "density":
            return map_of(series[0], quantity, drawing)
        case _:
            return lines_of(series, quantity, drawing)


def file_of(series: Sequence[Series], quantity: Shown, drawing: Drawing) -> str:
    """Draw the same as an SVG file, which says so if there is nothing to draw."""
    plot = plot_of(series, quantity, drawing)
    told = " ".join(plot.notes) or "No checkpoint has this number."
    caption = Caption(f"series-{quantity}", TITLES[quantity], told)
    return standalone.document(plot.svg if plot.svg is not None else overlay.nothing(caption))
