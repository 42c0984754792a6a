"""The losses. To add one, write its module here and add the module's name to ``options.LossKind``.

Each module has the name of its loss's kind and holds the loss as ``LOSS``.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import get_args

from wsb_engine.curvature.losses.base import Compared, Loss, LossDerivatives, LossRounding, Targets
from wsb_engine.options import LossKind

__all__ = ["LOSSES", "Compared", "Loss", "LossDerivatives", "LossRounding", "Targets", "automatic"]

LOSSES: Mapping[LossKind, Loss] = {kind: import_module(f"{__name__}.{kind}").LOSS for kind in get_args(LossKind)}
"""By kind."""


def automatic(logits: int) -> Loss:
    """Return the loss of a classifier with so many logits: binary cross-entropy for one, else cross-entropy."""
    return LOSSES["binary_cross_entropy" if logits == 1 else "cross_entropy"]
