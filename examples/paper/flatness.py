"""Flat minima: the bound as a penalty against plain stochastic gradient descent and sharpness-aware minimisation (SAM).

The penalty is that of Omae et al. 2026 (arXiv 2606.28662); SAM is that of Foret et al. 2021 (arXiv 2010.01412), whose
gradient is taken at θ + ρ g/‖g‖, g being the gradient at θ.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean, median

import torch
from page import LAMBDA_MAX, Claim, Result, panels, svg, table
from setting import (
    CLASSES,
    FAST,
    Rows,
    Setting,
    accuracy,
    analyse,
    cross_entropy,
    descend,
    middle,
    perceptron,
    ranks_agree,
)
from torch import nn

import wsb_engine as wsb
from wsb_engine.presentation.figures import style

HIDDEN = 16
ROWS = 400
BATCH = 50
LEARNING_RATE = 0.2
STEPS = 400
SEEDS = 3
METHODS = (("SGD", 0.0), ("SAM", 0.05), ("SAM", 0.2), ("penalty", 0.01), ("penalty", 0.1))
"""Name, and ρ of SAM or of L + ρ U."""
RELATED = 0.5
"""Rank correlation from which on two quantities count as related."""
OMAE_2026 = "[Omae et al. 2026](https://arxiv.org/abs/2606.28662)"
FORET_2021 = "[Foret et al. 2021](https://arxiv.org/abs/2010.01412)"


@dataclass(frozen=True)
class Trained:
    """A trained network, measured."""

    method: str
    strength: float
    loss: float
    sharpness: float
    """λ_max of the rows that it was trained on."""
    held_out_accuracy: float
    held_out_loss: float
    held_out_sharpness: float
    seconds: float
    """Processor time of the training."""

    @property
    def name(self) -> str:
        return self.method if not self.strength else f"{self.method}, ρ = {self.strength:g}"


def run(setting: Setting) -> Result:
    """Train by each method, from the same initial weights and on the same batches."""
    found = [
        _train(setting, setting.seed + seed, method, strength)
        for seed in range(setting.take(SEEDS, 1))
        for method, strength in METHODS
    ]
    head = ("method", "loss", "λ_max", "held out: accuracy", "loss", "λ_max", "processor time / SGD")
    return Result(table(head, _rows(found)), _claims(found), {"flatness": _figure(found)})


def _train(setting: Setting, seed: int, method: str, strength: float) -> Trained:
    rows = setting.train[0][:ROWS], setting.train[1][:ROWS]
    module = perceptron(rows[0].shape[1], HIDDEN, CLASSES, seed)
    optimizer = torch.optim.SGD(module.parameters(), lr=LEARNING_RATE)
    generator = torch.Generator().manual_seed(seed)
    started = time.process_time()
    for _ in range(setting.take(STEPS, 10)):
        chosen = torch.randint(ROWS, (BATCH,), generator=generator)
        batch = rows[0][chosen], rows[1][chosen]
        if method == "SAM":
            _sharpness_aware(module, batch, optimizer, strength)
        elif method == "penalty":
            descend(module, batch, optimizer, partial(_penalty, module, batch, strength))
        else:
            descend(module, batch, optimizer)
    seconds = time.process_time() - started
    return Trained(
        method,
        strength,
        cross_entropy(module, rows),
        middle(analyse(module, rows, FAST)),
        accuracy(module, setting.held_out),
        cross_entropy(module, setting.held_out),
        middle(analyse(module, setting.held_out, FAST)),
        seconds,
    )


def _penalty(module: nn.Module, batch: Rows, strength: float) -> torch.Tensor:
    return strength * wsb.wolkowicz_styan_penalty(module, *batch)


def _sharpness_aware(module: nn.Module, batch: Rows, optimizer: torch.optim.Optimizer, radius: float) -> None:
    """Take a step along the gradient at the end of a step uphill of length ``radius``."""
    parameters = list(module.parameters())
    loss = nn.functional.cross_entropy(module(batch[0]), batch[1])
    gradients = torch.autograd.grad(loss, parameters)
    norm = torch.sqrt(torch.stack([g.square().sum() for g in gradients]).sum())
    uphill = [radius * g / (norm + 1e-12) for g in gradients]
    at = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for p, step in zip(parameters, uphill, strict=True):
            p.add_(step)
    optimizer.zero_grad()
    nn.functional.cross_entropy(module(batch[0]), batch[1]).backward()
    with torch.no_grad():
        for p, value in zip(parameters, at, strict=True):
            p.copy_(value)
    optimizer.step()


def _of(found: Sequence[Trained], name: str) -> list[Trained]:
    return [each for each in found if each.name == name]


def _names(found: Sequence[Trained]) -> list[str]:
    return list(dict.fromkeys(each.name for each in found))


def _rows(found: Sequence[Trained]) -> list[tuple[str, ...]]:
    plain = fmean(each.seconds for each in _of(found, "SGD"))
    rows = []
    for name in _names(found):
        runs = _of(found, name)
        rows.append(
            (
                name,
                f"{median(each.loss for each in runs):.3f}",
                f"{median(each.sharpness for each in runs):.2f}",
                f"{100 * median(each.held_out_accuracy for each in runs):.1f} %",
                f"{median(each.held_out_loss for each in runs):.3f}",
                f"{median(each.held_out_sharpness for each in runs):.2f}",
                f"{fmean(each.seconds for each in runs) / plain:.1f}",
            )
        )
    return rows


def _claims(found: Sequence[Trained]) -> list[Claim]:
    plain = _of(found, "SGD")
    accuracies = {name: median(each.held_out_accuracy for each in _of(found, name)) for name in _names(found)}
    best = max(accuracies, key=lambda name: accuracies[name])
    flattest = min(_names(found), key=lambda name: median(each.sharpness for each in _of(found, name)))
    sharpness = [each.sharpness for each in found]
    gains = ranks_agree(sharpness, [-each.held_out_accuracy for each in found])
    losses = ranks_agree(sharpness, [each.held_out_loss for each in found])
    return [
        *(_flattens(found, plain, *method) for method in (("penalty", OMAE_2026), ("SAM", FORET_2021))),
        Claim(
            "the flattest minimum classifies held-out rows best",
            "the flatness hypothesis, as in " + FORET_2021,
            f"{flattest} is the flattest, at {100 * accuracies[flattest]:.1f} %; {best} is the most accurate, at "
            f"{100 * accuracies[best]:.1f} %",
            agrees=accuracies[flattest] == accuracies[best],
        ),
        Claim(
            "over all runs, sharper minima err more on held-out rows",
            "the flatness hypothesis",
            f"rank correlation of λ_max with the error {gains:.2f}, and with the held-out loss {losses:.2f}",
            agrees=gains >= RELATED,
        ),
    ]


def _flattens(found: Sequence[Trained], plain: Sequence[Trained], method: str, source: str) -> Claim:
    """Compare each run of the largest strength with that of SGD from the same initial weights."""
    strength = max(each.strength for each in found if each.method == method)
    runs = [each for each in found if each.method == method and each.strength == strength]
    ratios = [one.sharpness / other.sharpness for one, other in zip(runs, plain, strict=True)]
    return Claim(
        f"{runs[0].name} finds flatter minima than SGD",
        source,
        f"λ_max is {min(ratios):.2f} to {max(ratios):.2f} times that of SGD in {len(ratios)} runs",
        agrees=max(ratios) < 1,
    )


def _figure(found: Sequence[Trained]) -> bytes:
    with style():
        left, right = axes = panels(["accuracy", "loss"])
        for index, name in enumerate(_names(found)):
            runs = _of(found, name)
            sharpness = [each.sharpness for each in runs]
            marker = {"SGD": "o", "SAM": "s", "penalty": "v"}[runs[0].method]
            shown = {"marker": marker, "color": f"C{index}", "label": name}
            left.scatter(sharpness, [100 * each.held_out_accuracy for each in runs], 18, **shown)
            right.scatter(sharpness, [each.held_out_loss for each in runs], 18, **shown)
        left.set(xlabel=f"{LAMBDA_MAX} of the training rows", ylabel="held-out accuracy, %")
        right.set(xlabel=f"{LAMBDA_MAX} of the training rows", ylabel="held-out loss")
        right.legend(fontsize="x-small", framealpha=0.8, edgecolor="none", loc="best")
        return svg(axes)
