"""Recovers logits from a model's output if the graph does not expose them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from wsb_engine.model import Tensors
from wsb_engine.options import Head

PROBABILITY_TOLERANCE = 1e-5
"""How far from 1 the sum of a row of probabilities may be, single precision and many classes included."""

Function = Callable[[Tensors, Tensors], Tensor]


def apply_head(function: Function, head: Head, stripped: str) -> tuple[Function, str]:
    """The logits as a function, and what was undone to reach them.

    Args:
        function: The model up to its head; ``stripped`` names the softmax, log-softmax or sigmoid that followed and
            has been cut off, or is "none".
        head: What the caller says that the model's output means.
    """
    if stripped != "none":
        return function, stripped
    if head == "probabilities":
        return lambda parameters, inputs: torch.log(function(parameters, inputs)), "probabilities"
    if head == "binary_probability":
        return lambda parameters, inputs: torch.logit(function(parameters, inputs)), "binary_probability"
    return function, "log_probabilities" if head == "log_probabilities" else "none"


def looks_like_probabilities(z: Tensor) -> bool:
    """Whether every row of outputs (N, C), C ≥ 2, is positive and sums to 1 as probabilities do."""
    return bool(z.shape[1] > 1 and (z > 0).all() and ((z.sum(dim=1) - 1).abs() < PROBABILITY_TOLERANCE).all())
