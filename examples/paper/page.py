"""The page and its figures: what a part found goes between the part's markers in README.md."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from wsb_engine.presentation.figures import encoded

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PAGE = Path(__file__).parent / "README.md"
FIGURES = "figures"
LAMBDA_MAX = r"$\lambda_{\max}$"
"""As figures show it."""


@dataclass(frozen=True)
class Claim:
    """A statement of the literature, and what this run makes of it."""

    statement: str
    source: str
    here: str
    """What was found, with numbers."""
    agrees: bool


@dataclass(frozen=True)
class Result:
    """What a part found."""

    numbers: str
    """Markdown, with tables."""
    claims: Sequence[Claim]
    figures: dict[str, bytes] = field(default_factory=dict)
    """SVG by name."""


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def verdicts(claims: Sequence[Claim]) -> str:
    """Return the table of claims, with what agrees and what does not."""
    rows = [(c.statement, c.source, c.here, "agrees" if c.agrees else "**does not agree**") for c in claims]
    return table(("the literature", "source", "here", ""), rows)


def panels(titles: Sequence[str]) -> list[Axes]:
    """Return axes side by side in a new figure of a page's width; call it, and draw, inside ``style()``."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4 * len(titles), 2.8), layout="constrained")
    axes = figure.subplots(1, len(titles), squeeze=False)[0]
    for each, title in zip(axes, titles, strict=True):
        each.set_title(title, fontsize="medium")
    return list(axes)


def svg(axes: Sequence[Axes]) -> bytes:
    """Return the figure that these axes belong to as SVG, the same bytes each time."""
    return encoded(axes[0], "svg")


def write(folder: Path, name: str, result: Result) -> None:
    """Write a part's figures, and its numbers and claims between its markers.

    Args:
        folder: Of the page; one that has none gets a copy of this example's.
        name: Of the part.
        result: What it found.

    Raises:
        ValueError: if the page lacks the markers.
    """
    path = folder / "README.md"
    text = (path if path.exists() else PAGE).read_text(encoding="utf-8")
    for kind, content in (("numbers", result.numbers), ("claims", verdicts(result.claims))):
        text = between(text, f"{name} {kind}", content)
    (folder / FIGURES).mkdir(parents=True, exist_ok=True)
    for figure, content in result.figures.items():
        (folder / FIGURES / f"{figure}.svg").write_bytes(content)
    path.write_text(text, encoding="utf-8")


def between(text: str, marker: str, content: str) -> str:
    """Replace what is between a pair of markers.

    Raises:
        ValueError: unless there is one such pair.
    """
    pattern = re.compile(rf"(<!-- {re.escape(marker)} -->\n).*?(<!-- end -->\n)", re.DOTALL)
    found = pattern.sub(lambda match: f"{match[1]}\n{content}\n\n{match[2]}", text)
    if len(pattern.findall(text)) != 1:
        raise ValueError(f"the page has no place for {marker!r}, or several: remove it to start again")
    return found
