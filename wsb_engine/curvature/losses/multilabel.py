"""Binary cross-entropy of several labels of a sample, each by itself: the mean over labels, as over samples.

The labels may lie in any shape: classes of which several are true [N, C], or pixels of one class [N, 1, H, W].
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from wsb_engine.curvature.losses.base import Output
from wsb_engine.curvature.losses.binary_cross_entropy import BinaryCrossEntropy
from wsb_engine.options import Options


@dataclass(frozen=True)
class Multilabel(BinaryCrossEntropy):
    """Mean of the binary cross-entropies of C logits; targets are the weights of both classes, (N, 2, C)."""

    kind = "multilabel"
    form = "labels"
    settings = frozenset({"pos_weight"})

    def configured(self, options: Options, output: Output) -> BinaryCrossEntropy:
        return self.weighted(options, math.prod(output.sizes))

    def correct(self, z: Tensor, y: Tensor) -> Tensor:
        return ((z > 0) == (y > 0.5)).double().mean(dim=1)

    def classes(self, logits: int) -> int:
        return logits

    def targets(self, y: Tensor, logits: int) -> Tensor:
        return self.sides(y.double()) / logits


LOSS = Multilabel()
