"""About C outliers: how many eigenvalues of the Hessian stand out, for 3, 5 and 10 classes.

The spectra are dense: all eigenvalues of the Hessian as it was formed, so none is missed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from page import Claim, Result, panels, svg, table
from setting import Rows, Setting, cross_entropy, fit, perceptron

import wsb_engine as wsb
from wsb_engine.presentation.figures import style

HIDDEN = 16
ROWS = 1000
CLASSES = (3, 5, 10)
STEPS = (0, 30, 300)
"""Steps of training at which spectra are taken."""
SEARCHED = 3
"""Gaps are looked for among this many times C eigenvalues."""
MOST = 0.8
"""Share of ‖H‖_F² that counts as most of it."""
SAGUN_2017 = "[Sagun et al. 2017](https://arxiv.org/abs/1706.04454)"
GUR_ARI_2018 = "[Gur-Ari et al. 2018](https://arxiv.org/abs/1812.04754)"
PAPYAN_2019 = "[Papyan 2019](https://arxiv.org/abs/1901.08244)"
OPTIONS = wsb.Options(spectrum="dense", enclosure=False, device="cpu", dtype="float64")


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues of one network."""

    classes: int
    steps: int
    loss: float
    eigenvalues: list[float]
    """All of them, in descending order."""

    @property
    def standing_out(self) -> int:
        """Number of eigenvalues before the largest relative gap."""
        leading = self.eigenvalues[: SEARCHED * self.classes + 1]
        gaps = [one / other for one, other in pairwise(leading) if other > 0]
        return 1 + max(range(len(gaps)), key=gaps.__getitem__)

    def gap(self, rank: int) -> float:
        """Return the eigenvalue of this rank over the next."""
        return self.eigenvalues[rank - 1] / self.eigenvalues[rank]

    def share(self, count: int) -> float:
        """Return the share of ‖H‖_F² that the largest eigenvalues hold."""
        squares = [value * value for value in self.eigenvalues]
        return sum(squares[:count]) / sum(squares)


def run(setting: Setting) -> Result:
    """Train on the first C classes, and take spectra on the way."""
    found = [spectrum for classes in CLASSES for spectrum in _spectra(setting, classes)]
    head = ("C", "steps", "loss", "λ_1", "stand out", "λ_(C−1) / λ_C", "λ_C / λ_(C+1)", "first C hold of ‖H‖_F²")
    return Result(table(head, _rows(found)), _claims(found), {"outliers": _figure(found)})


def _spectra(setting: Setting, classes: int) -> list[Spectrum]:
    rows = _of_classes(setting.train, classes, setting.take(ROWS, 60))
    module = perceptron(rows[0].shape[1], setting.take(HIDDEN, 4), classes, setting.seed)
    found, done = [], 0
    for steps in setting.take(STEPS, (0, 20)):
        fit(module, rows, steps - done)
        done = steps
        found.append(_spectrum(module, rows, classes, steps))
    return found


def _of_classes(rows: Rows, classes: int, count: int) -> Rows:
    chosen = rows[1] < classes
    return rows[0][chosen][:count], rows[1][chosen][:count]


def _spectrum(module: torch.nn.Module, rows: Rows, classes: int, steps: int) -> Spectrum:
    report = wsb.analyze(wsb.from_module(module), wsb.Batch(*rows), OPTIONS)
    if report.spectrum is None or report.failed_checks:
        raise RuntimeError(f"there is no spectrum, or a check failed: {report.failed_checks}")
    return Spectrum(classes, steps, cross_entropy(module, rows), list(report.spectrum.eigenvalues))


def _rows(found: Sequence[Spectrum]) -> list[tuple[str, ...]]:
    return [
        (
            str(each.classes),
            str(each.steps),
            f"{each.loss:.3f}",
            f"{each.eigenvalues[0]:.3g}",
            str(each.standing_out),
            f"{each.gap(each.classes - 1):.2f}",
            f"{each.gap(each.classes):.2f}",
            f"{100 * each.share(each.classes):.0f} %",
        )
        for each in found
    ]


def _claims(found: Sequence[Spectrum]) -> list[Claim]:
    claims = []
    for steps in sorted({each.steps for each in found}):
        here = [each for each in found if each.steps == steps]
        counts = ", ".join(f"{each.standing_out} at C = {each.classes}" for each in here)
        claims.append(
            Claim(
                f"C − 1 to C + 1 eigenvalues stand out (after {steps} steps)",
                f"{SAGUN_2017}, {GUR_ARI_2018}, {PAPYAN_2019}",
                counts,
                agrees=all(abs(each.standing_out - each.classes) <= 1 for each in here),
            )
        )
    trained = [each for each in found if each.steps]
    shares = [each.share(each.classes) for each in trained]
    untrained = [each.share(each.classes) for each in found if not each.steps]
    claims.append(
        Claim(
            "once trained, the largest C eigenvalues hold most of the curvature",
            GUR_ARI_2018,
            f"{100 * min(shares):.0f} to {100 * max(shares):.0f} % of ‖H‖_F²; before training "
            f"{100 * min(untrained):.0f} to {100 * max(untrained):.0f} %",
            agrees=min(shares) >= MOST,
        )
    )
    return claims


def _figure(found: Sequence[Spectrum]) -> bytes:
    from matplotlib.ticker import MaxNLocator

    with style():
        axes = panels([f"C = {classes}" for classes in CLASSES])
        for each, classes in zip(axes, CLASSES, strict=True):
            for index, spectrum in enumerate(s for s in found if s.classes == classes):
                leading = [value for value in spectrum.eigenvalues[: SEARCHED * classes + 1] if value > 0]
                places = range(1, len(leading) + 1)
                label = f"{spectrum.steps} steps"
                each.plot(places, leading, "o^s"[index], color=f"C{index}", markersize=3, label=label)
            each.axvline(classes + 0.5, color="0.4", linestyle="--", linewidth=1)
            each.set(xlabel="rank", yscale="log")
            each.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes[0].set_ylabel("eigenvalue")
        axes[-1].legend(fontsize="x-small", framealpha=0.8, edgecolor="none", loc="best")
        return svg(axes)
