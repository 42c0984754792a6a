"""Write the page with the last full run, docs/benchmarks.md, and its plots in docs/images."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import psutil
from harness import Curve, Row, machine

DOCS = Path(__file__).parents[1] / "docs"
PEERS = ("curvlinops-for-pytorch", "hessian-eigenthings", "numpy")
UNITS = {"time": "seconds", "memory": "MiB"}
NAMES = {"moments": "exact moments", "product": "one Hessian product"}
HEAD = """# Benchmarks

Written by `./scripts/bench --write`, which compares with public tools in the same run. `./scripts/bench` prints the
same table and exits with 1 if a target is missed. Times are medians with their range in brackets, and programs that are
compared take turns. A single product is called once just before it is timed, because Lanczos runs call one after
another. [Performance](performance.md) says what limits each case. **{met} of {count} targets are met.**

- {date}, {machine}
- {processor}, {memory:.0f} GiB memory
- {peers}
"""
GROWTH = """Both axes are logarithmic. A slope is fitted to the last three points by least squares; 2 means that twice
the size takes four times as much. Memory is the peak of resident memory, beyond what was resident before.
"""


@dataclass(frozen=True)
class Section:
    title: str
    rows: Sequence[Row]
    busy: float | None = None
    """Percentage of the machine that other programs used just before."""


def write(sections: Sequence[Section]) -> None:
    """Replace the page and its plots."""
    rows = [row for section in sections for row in section.rows]
    curves = [row for row in rows if isinstance(row, Curve)]
    targets = [row.met for row in rows if row.met is not None]
    parts = [
        HEAD.format(
            met=targets.count(True),
            count=len(targets),
            date=datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
            machine=machine(),
            processor=processor(),
            memory=psutil.virtual_memory().total / (1 << 30),
            peers=", ".join(f"{name} {version(name)}" for name in PEERS),
        )
    ]
    for section in sections:
        plain = [row for row in section.rows if not isinstance(row, Curve)]
        grown = [row for row in section.rows if isinstance(row, Curve)]
        parts.append(f"\n## {section.title}\n\n")
        if section.busy is not None:
            parts.append(f"Just before, other programs used {section.busy:.0f} % of the machine.\n\n")
        if plain:
            parts += ["| | measured | target | |\n|---|---|---|---|\n", *map(_line, plain)]
        if grown:
            parts.append(GROWTH)
            for subject in NAMES:
                draw(subject, [curve for curve in curves if curve.quantity.startswith(subject)])
                parts.append(f"\n![Time and memory of {NAMES[subject]}](images/growth-{subject}.svg)\n")
            parts.append("\n| | fixed | slope | expected slope and reason | from, to |\n|---|---|---|---|---|\n")
            parts += [_grown(curve) for curve in grown]
    (DOCS / "benchmarks.md").write_text("".join(parts), encoding="utf-8")


def _line(row: Row) -> str:
    mark = {True: "met", False: "**missed**", None: ""}[row.met]
    return f"| {row.name} | {row.measured} | {row.target} | {mark} |\n"


def _grown(curve: Curve) -> str:
    subject, what = curve.quantity.split()
    ends = f"{curve.points[0][1]:.3g} to {curve.points[-1][1]:.3g} {'s' if what == 'time' else 'MiB'}"
    return (
        f"| {what} of {NAMES[subject]} against {curve.axis} | {curve.subject} | {curve.slope:.2f} "
        f"| {curve.reason} | {ends} |\n"
    )


def draw(subject: str, curves: Sequence[Curve]) -> None:
    """Plot time above memory, one column for each size."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # Makes the file reproducible.
    mpl.rcParams["svg.hashsalt"] = "wsb"
    axes_names = list(dict.fromkeys(curve.axis for curve in curves))
    figure = Figure(figsize=(3.2 * len(axes_names), 5.6), layout="constrained")
    grid = figure.subplots(len(UNITS), len(axes_names), squeeze=False)
    for curve in curves:
        what = curve.quantity.split()[1]
        axes = grid[list(UNITS).index(what)][axes_names.index(curve.axis)]
        x, y = zip(*curve.points, strict=True)
        axes.loglog(x, y, "o-", color="#1f5fa8")
        axes.set_title(f"{curve.subject}\nslope {curve.slope:.2f}", fontsize=9)
        axes.set_xlabel(curve.axis)
        axes.set_ylabel(f"{what} in {UNITS[what]}")
        axes.grid(which="major", alpha=0.3)
    figure.suptitle(NAMES[subject])
    path = DOCS / "images" / f"growth-{subject}.svg"
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown processor"
