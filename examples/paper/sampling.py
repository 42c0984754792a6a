"""Batch bias: λ_max of batches against that of all rows that they are drawn from, and the interval for the latter.

λ_max is convex in the Hessian, so a batch's is too large on average (Jensen). The option ``population`` gives a
confidence interval for λ_max of the distribution that the rows come from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean, stdev

import torch
from page import LAMBDA_MAX, Claim, Result, panels, svg, table
from setting import CLASSES, FAST, HIDDEN, Rows, Setting, analyse, fit, middle, perceptron

from wsb_engine.analysis.questions.population import LEAST_ROWS
from wsb_engine.presentation.figures import style

CONFIDENCE = 0.95
SIZES = (32, 128, 256, 1024)
TRAINING_ROWS = 1000
STANDARD_ERRORS = 3.0
"""Standard errors of the draws by which the coverage may fall short, and the bias of a larger batch be larger."""
OPTIONS = FAST.model_copy(update={"relative_gap": 1e-3})


@dataclass(frozen=True)
class Batches:
    """Batches of one size; lengths relative to λ_max of all rows."""

    size: int
    sharpness: list[float]
    intervals: list[tuple[float, float]]
    """Empty if a batch is too small for one."""

    @property
    def bias(self) -> float:
        return fmean(self.sharpness) - 1

    @property
    def error(self) -> float:
        """Standard error of the bias."""
        return stdev(self.sharpness) / math.sqrt(len(self.sharpness))

    @property
    def covering(self) -> int:
        return sum(low <= 1 <= high for low, high in self.intervals)


def run(setting: Setting) -> Result:
    """Train on some rows, and draw batches from others."""
    train = setting.train[0][:TRAINING_ROWS], setting.train[1][:TRAINING_ROWS]
    module = perceptron(train[0].shape[1], HIDDEN, CLASSES, setting.seed)
    fit(module, train, setting.take(150, 20))
    whole = middle(analyse(module, setting.held_out, OPTIONS))
    sizes = setting.take(SIZES, (64, 256))
    found = [_draw(module, setting, size, whole) for size in sizes]
    numbers = table(
        ("rows", "batches", "λ_max of a batch / that of all", "its standard deviation", "interval, mean", "covers"),
        [_row(each) for each in found],
    )
    title = f"λ_max of all {len(setting.held_out[1]):,} held-out rows is {whole:.3f}."
    return Result(f"{title}\n\n{numbers}", _claims(found), {"sampling": _figure(found)})


def _draw(module: torch.nn.Module, setting: Setting, size: int, whole: float) -> Batches:
    """Analyse batches that are drawn with replacement."""
    generator = torch.Generator().manual_seed(setting.seed + size)
    has_interval = size >= LEAST_ROWS
    options = OPTIONS.model_copy(update={"population": CONFIDENCE if has_interval else None})
    sharpness, intervals = [], []
    for _ in range(setting.take(12 if has_interval else 40, 2)):
        report = analyse(module, _sample(setting.held_out, size, generator), options)
        sharpness.append(middle(report) / whole)
        if report.population is not None:
            found = report.population.lambda_max
            intervals.append((found.lower / whole, found.upper / whole))
    return Batches(size, sharpness, intervals)


def _sample(rows: Rows, size: int, generator: torch.Generator) -> Rows:
    drawn = torch.randint(len(rows[1]), (size,), generator=generator)
    return rows[0][drawn], rows[1][drawn]


def _row(found: Batches) -> list[str]:
    interval, covers = "–", "–"
    if found.intervals:
        low, high = (fmean(ends) for ends in zip(*found.intervals, strict=True))
        interval, covers = f"{low:.2f} to {high:.2f}", f"{found.covering} of {len(found.intervals)}"
    return [
        str(found.size),
        str(len(found.sharpness)),
        f"{1 + found.bias:.3f} ± {found.error:.3f}",
        f"{stdev(found.sharpness):.3f}",
        interval,
        covers,
    ]


def _claims(found: list[Batches]) -> list[Claim]:
    small, large = found[0], found[-1]
    covering, intervals = (sum(counts) for counts in zip(*((b.covering, len(b.intervals)) for b in found), strict=True))
    claims = [
        Claim(
            "λ_max of a batch is too large on average",
            "Jensen's inequality",
            f"by {100 * small.bias:.0f} ± {100 * small.error:.0f} % with {small.size} rows",
            agrees=small.bias > STANDARD_ERRORS * small.error,
        ),
        Claim(
            "the excess vanishes as batches grow",
            "second-order perturbation, [mathematics](../../docs/mathematics.md)",
            f"{100 * large.bias:.1f} ± {100 * large.error:.1f} % with {large.size} rows",
            agrees=abs(large.bias) < STANDARD_ERRORS * large.error + small.bias / 5,
        ),
    ]
    if intervals:
        least = CONFIDENCE - STANDARD_ERRORS * math.sqrt(CONFIDENCE * (1 - CONFIDENCE) / intervals)
        claims.append(
            Claim(
                f"the interval covers λ_max of all rows in {100 * CONFIDENCE:.0f} % of batches",
                "asymptotic, [mathematics](../../docs/mathematics.md)",
                f"{covering} of {intervals}",
                agrees=covering >= least * intervals,
            )
        )
    return claims


def _figure(found: list[Batches]) -> bytes:
    with style():
        left, right = axes = panels([f"{LAMBDA_MAX} of batches", f"intervals at {100 * CONFIDENCE:.0f} %"])
        left.boxplot([each.sharpness for each in found], tick_labels=[str(each.size) for each in found])
        for index, (low, high) in enumerate(interval for each in found for interval in sorted(each.intervals)):
            right.plot([index, index], [low, high], color="C0" if low <= 1 <= high else "C1", linewidth=1.5)
        start, places = 0, []
        for each in found:
            if each.intervals:
                places.append((start + len(each.intervals) / 2 - 0.5, str(each.size)))
            start += len(each.intervals)
        right.set_xticks([place for place, _ in places], [text for _, text in places])
        for each in axes:
            each.axhline(1, color="0.4", linestyle="--", linewidth=1)
            each.set_xlabel("rows of a batch")
        left.set_ylabel(f"relative to {LAMBDA_MAX} of all rows")
        return svg(axes)
