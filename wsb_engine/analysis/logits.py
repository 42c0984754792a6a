"""The logits of all samples: kept if they take little memory, else computed again each time they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from wsb_engine.curvature.losses import Compared
from wsb_engine.curvature.losses.base import in_blocks
from wsb_engine.curvature.products.autodiff import Objective
from wsb_engine.errors import ModelError
from wsb_engine.formats.graph.logits import looks_like_probabilities, one_number, several_rows
from wsb_engine.model import Form

LOGITS_SHARE = 1 / 16
"""Share of the memory limit up to which the logits of all samples are kept; computing them takes a sixth of a product.
"""


def kept_bytes(samples: int, classes: int, memory: int) -> int:
    """Return the bytes of logits that are kept: those of all samples, or 0 if the memory limit does not hold them."""
    needed = torch.float64.itemsize * samples * classes
    return needed if needed <= LOGITS_SHARE * memory else 0


@dataclass(frozen=True)
class BatchLogits:
    """What is known of the logits of all samples."""

    classes: int
    """C"""
    largest: float
    """max |z|"""
    infinite_row: int | None
    """The first row that is not finite; None if all are."""
    are_probabilities: bool
    """True if every row is non-negative and sums to 1 as probabilities do."""
    are_shares: bool
    """True if all are from 0 to 1."""
    kept: Tensor | None
    """(N, C) float64 on the CPU; None if they are computed again."""

    def require_finite(self) -> None:
        """Raise ModelError ``logits_not_finite`` unless all logits are finite."""
        if self.infinite_row is not None:
            raise ModelError(
                f"the logits of row {self.infinite_row} are not finite",
                code="logits_not_finite",
                advice="Check the scale of the inputs; probabilities that underflow to 0 need the logits exported "
                "instead.",
                row=self.infinite_row,
            )

    def require_logits(self, form: Form, warn: Callable[[str, str], None]) -> None:
        """Warn if the outputs, of which nothing says that they are logits, may be probabilities: all are from 0 to 1.

        Args:
            form: What the loss takes for logits.
            warn: Adds a code and a message to the report.

        Raises:
            ModelError: ``ambiguous_head`` if it is one output of a sample: a sigmoid is then the usual end.
        """
        if form == "values" or not self.are_shares:
            return
        if form == "row" and self.classes == 1:
            raise one_number()
        warn(
            "head_assumed",
            "every output is between 0 and 1 and was taken for a logit: if it is a probability, set head to "
            + ("binary_probability" if form == "labels" else "probabilities, or loss to multilabel"),
        )

    def rows(self, objective: Objective, rows: slice) -> Tensor:
        """Return logits of at most a chunk of samples, (B, C) float64 on the CPU.

        Args:
            objective: The objective that they belong to, in any dtype or memory format.
            rows: The samples.
        """
        if self.kept is not None:
            return self.kept[rows]
        with torch.no_grad():
            return objective.logits(rows).to("cpu", torch.float64)

    def chunks(self, objective: Objective, stop: int | None = None) -> Iterator[tuple[slice, Tensor]]:
        """Yield rows and their logits in order, up to row ``stop`` or to the end."""
        if self.kept is not None:
            rows = slice(0, len(self.kept[:stop]))
            yield rows, self.kept[rows]
            return
        for rows in objective.chunks(stop=stop):
            yield rows, self.rows(objective, rows)

    def compared(self, objective: Objective) -> Iterator[Compared]:
        """Yield the logits of all samples with their targets, as many at a time as losses work on in little memory."""
        for rows, z in self.chunks(objective):
            yield from in_blocks(z, objective.targets, rows.start)


def evaluated(objective: Objective, memory: int, progress: Callable[[float], None] = lambda _: None) -> BatchLogits:
    """Evaluate the logits in chunks.

    Args:
        objective: The model and its samples.
        memory: Bytes to work in.
        progress: Called with the fraction done after each chunk; may raise to stop.

    Raises:
        ModelError: ``unsupported_output``.
    """
    kept: Tensor | None = None
    classes, largest, infinite_row, are_probabilities, are_shares = 0, 0.0, None, True, True
    with torch.no_grad():
        for rows in objective.chunks():
            z = objective.logits(rows)
            if z.ndim != 2 or len(z) != rows.stop - rows.start or z.shape[1] == 0:
                raise several_rows("the model's output", tuple(z.shape), "unsupported_output")
            z = z.to("cpu", torch.float64)
            if not rows.start:
                classes = z.shape[1]
                # Allocated once: parts of all chunks would lie between freed inputs, which then take ever more memory.
                if kept_bytes(objective.samples, classes, memory):
                    kept = torch.empty(objective.samples, classes, dtype=torch.float64)
            if kept is not None:
                kept[rows] = z
            finite = torch.isfinite(z).all(dim=1)
            if infinite_row is None and not bool(finite.all()):
                infinite_row = rows.start + int(torch.nonzero(~finite)[0])
            largest = max(largest, float(z.abs().max()))
            distributions = objective.loss.distributions(z)
            are_probabilities = (
                are_probabilities and distributions is not None and looks_like_probabilities(distributions)
            )
            are_shares = are_shares and bool(((z >= 0) & (z <= 1)).all())
            progress(rows.stop / objective.samples)
    return BatchLogits(classes, largest, infinite_row, are_probabilities, are_shares, kept)
