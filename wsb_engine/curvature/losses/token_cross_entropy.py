"""Cross-entropy of a softmax at each position of a sample: tokens of a text, pixels of an image.

ℓ of a sample is the sum over its positions, each with the derivatives of ``cross_entropy``, so that ∇²ℓ has a block for
each position. Logits (B, T·C) are the model's output flattened, wherever its axis of classes is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from wsb_engine.curvature.losses.base import LossDerivatives, LossRounding, Output
from wsb_engine.curvature.losses.cross_entropy import CrossEntropy, SoftmaxDerivatives
from wsb_engine.errors import BatchError
from wsb_engine.options import Options

_ONE = Output(sizes=(1,))
"""Before the loss is configured."""


@dataclass(frozen=True)
class TokenCrossEntropy(CrossEntropy):
    """Cross-entropy of each position; targets are rows (N, T, C), and 0 where a label does not count.

    The mean is over all positions that count, whichever samples they belong to.
    """

    kind = "token_cross_entropy"
    form = "positions"

    output: Output = _ONE

    @property
    def sums(self) -> int:
        return 3 * self.output.positions

    def configured(self, options: Options, output: Output) -> TokenCrossEntropy:
        rows = super().configured(options, output)
        return TokenCrossEntropy(rows.class_weights, rows.label_smoothing, output)

    def values(self, z: Tensor, y: Tensor) -> Tensor:
        return super().values(self.rows(z), y.flatten(0, 1)).view(len(z), -1).sum(dim=1)

    def derivatives(self, z: Tensor, y: Tensor) -> TokenDerivatives:  # type: ignore[override]
        at = super().derivatives(self.rows(z), y.flatten(0, 1))
        return TokenDerivatives(self.flat(at.gradient), at, self)

    def rows(self, z: Tensor) -> Tensor:
        """Return logits (B, T·C) as rows, (B·T, C)."""
        sizes = self.output.sizes
        return z.reshape(-1, *sizes).movedim(self._axis, -1).reshape(-1, sizes[self.output.axis])

    def flat(self, rows: Tensor) -> Tensor:
        """Invert ``rows``."""
        sizes = list(self.output.sizes)
        classes = sizes.pop(self.output.axis)
        return rows.reshape(-1, *sizes, classes).movedim(-1, self._axis).flatten(1)

    @property
    def _axis(self) -> int:
        """The axis of classes of (B, *sizes)."""
        return self.output.axis % len(self.output.sizes) + 1

    def correct(self, z: Tensor, y: Tensor) -> Tensor:
        return (self.rows(z).argmax(dim=1).view_as(y) == y).sum(dim=1)

    def predictions(self, y: Tensor) -> Tensor:
        return (y >= 0).sum(dim=1).double()

    def mass(self, y: Tensor) -> Tensor:
        counted = y >= 0
        if self.class_weights is None:
            return counted.sum(dim=1).double()
        return (self.weights(y, relative=True)[y.clamp(min=0)] * counted).sum(dim=1)

    def classes(self, logits: int) -> int:
        return self.output.sizes[self.output.axis]

    def distributions(self, z: Tensor) -> Tensor:
        return self.rows(z)

    def targets(self, y: Tensor, logits: int) -> Tensor:
        if y.is_floating_point():
            raise BatchError(
                "y holds numbers that are no classes",
                code="labels_not_classes",
                advice="Give one integer label for each position, [N, T].",
            )
        rows = super().targets(y.flatten().clamp(min=0), self.classes(logits))
        return (rows * (y.flatten() >= 0).unsqueeze(1)).view(*y.shape, -1)


@dataclass(frozen=True)
class TokenDerivatives(LossDerivatives):
    """g and ∇²ℓ of B samples of T positions, from those of B·T rows; all float64."""

    gradient: Tensor
    at: SoftmaxDerivatives
    """Of the rows."""
    loss: TokenCrossEntropy

    @property
    def diagonal(self) -> Tensor:
        return self.loss.flat(self.at.diagonal)

    def curvature(self) -> Tensor:
        return self._blocks(self.at.curvature())

    def factor(self) -> Tensor:
        return self._blocks(self.at.factor())

    def _blocks(self, blocks: Tensor) -> Tensor:
        """Return (B·T, C, C) as the blocks of (B, T·C, T·C), in the order of the logits."""
        positions, classes = self.loss.output.positions, blocks.shape[1]
        matrix = blocks.new_zeros(len(blocks) // positions, positions, classes, positions, classes)
        matrix.diagonal(dim1=1, dim2=3).copy_(blocks.view(-1, positions, classes, classes).permute(0, 2, 3, 1))
        order = self._order(blocks.device)
        return matrix.view(-1, len(order), len(order))[:, order][:, :, order]

    def _order(self, device: torch.device) -> Tensor:
        """Return for each logit its place in the order of positions and classes."""
        places = torch.arange(math.prod(self.loss.output.sizes), device=device)
        return self.loss.flat(places.view(-1, self.loss.output.sizes[self.loss.output.axis]))[0]

    def factor_times(self, W: Tensor) -> Tensor:
        order, at = torch.argsort(self._order(W.device)), self.at
        T, C = self.loss.output.positions, at.p.shape[-1]
        by_position = W[order].view(T, C, -1)
        p, root = at.p.view(-1, T, C, 1), (at.total * at.p).sqrt().view(-1, T, C, 1)
        pivot = at.pivot.view(-1, T, 1, 1)
        chosen = by_position.expand(len(p), -1, -1, -1).gather(2, pivot.expand(-1, -1, 1, W.shape[1]))
        shifted = by_position - torch.where(at.shifts.view(-1, T, 1, 1), chosen, 0.0)
        product = root * (shifted - (p * shifted).sum(dim=2, keepdim=True))
        return product.flatten(1, 2)[:, self._order(W.device)]

    def column_product(self, scale: float) -> Callable[[Tensor], Tensor]:
        inner, order = self.at.column_product(scale), self._order(self.at.p.device)
        back, T = torch.argsort(order), self.loss.output.positions

        def product(r: Tensor) -> Tensor:
            rows = r[back].view(T, -1, *r.shape[1:]).permute(1, 2, 3, 0)
            image = inner(rows.flatten(2)).view(*rows.shape)
            return image.permute(3, 0, 1, 2).flatten(0, 1)[order]

        return product

    def rounding(self, z: Tensor, y: Tensor, radius: Tensor) -> LossRounding:
        """Bound the rounding errors by those of each position (mathematics.md, section 11)."""
        loss, T = self.loss, self.loss.output.positions
        rows = self.at.rounding(loss.rows(z), y.flatten(0, 1), loss.rows(radius))
        return LossRounding(
            gradient=loss.flat(rows.gradient),
            curvature=rows.curvature.view(-1, T).amax(dim=1),
            total=rows.total.view(-1, T).amax(dim=1),
            norm=lambda X, Y: rows.norm(loss.rows(X), loss.rows(Y)).view(-1, T).sum(dim=1),
        )


LOSS = TokenCrossEntropy()
