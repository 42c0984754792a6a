"""The losses. To add one, write its module here and add the module's name to ``options.LossKind``.

Each module has the name of its loss's kind and holds the loss as ``LOSS``.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import get_args

from wsb_engine.curvature.losses.base import Compared, Loss, LossDerivatives, LossRounding, Output, Targets
from wsb_engine.errors import OptionsError
from wsb_engine.options import LossKind, Options

__all__ = [
    "LOSSES",
    "Compared",
    "Loss",
    "LossDerivatives",
    "LossRounding",
    "Output",
    "Targets",
    "automatic",
    "configured",
]

LOSSES: Mapping[LossKind, Loss] = {kind: import_module(f"{__name__}.{kind}").LOSS for kind in get_args(LossKind)}
"""By kind."""


def automatic(logits: int) -> Loss:
    """Return the loss of a classifier with so many logits: binary cross-entropy for one, else cross-entropy."""
    return LOSSES["binary_cross_entropy" if logits == 1 else "cross_entropy"]


SETTINGS = tuple(dict.fromkeys(name for loss in LOSSES.values() for name in sorted(loss.settings)))
"""Names of all options of losses."""


def configured(kind: LossKind, options: Options, output: Output) -> Loss:
    """Return a loss with the options that it takes, for a model's output.

    Raises:
        OptionsError: ``option_not_of_loss`` for an option that is set and that the loss does not take, and those of
            ``Loss.configured``.
    """
    loss = LOSSES[kind]
    for name in SETTINGS:
        if name not in loss.settings and getattr(options, name) != Options.model_fields[name].default:
            takers = [other for other, each in LOSSES.items() if name in each.settings]
            raise OptionsError(
                f"the loss is {kind}, which does not take {name}",
                code="option_not_of_loss",
                advice=f"Leave {name} out, or set loss to {' or '.join(takers)}.",
                option=name,
                loss=kind,
            )
    return loss.configured(options, output)
