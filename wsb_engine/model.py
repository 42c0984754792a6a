"""A classifier as a pure function of (parameters, inputs), whatever file or module it came from.

A reader (``wsb_engine.formats``) turns a file into a ``Classifier``. ``Classifier.resolve`` then picks the
output and strips the head (softmax, sigmoid, …), which depends on options, and gives a ``LogitModel``: the
function whose Hessian is studied.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from wsb_engine.options import Head

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Input:
    """One input of a model: ``shape`` has the sample axis first; None is a free dimension."""

    name: str
    shape: tuple[int | None, ...] | None
    """None where the file declares no shape."""
    dtype: torch.dtype | None
    """As the file declares it, None where it doesn't; floating inputs are cast to the working dtype."""


@dataclass(frozen=True, kw_only=True)
class DenseLayer:
    """h = W a + b of an MLP; ``weight`` and ``bias`` name entries of ``LogitModel.parameters``."""

    weight: str
    transposed: bool
    """False where the tensor is stored [d_out, d_in]; True where it is stored [d_in, d_out]."""
    bias: str | None
    """A tensor of d_out elements (any shape with that many)."""


@dataclass(frozen=True, kw_only=True)
class Activation:
    """A smooth elementwise function between two layers.

    ``kind`` names an entry of ``wsb_engine.curvature.closed_form.activations``. ELU has its slope in ``alpha``. A GELU
    that a file writes out has rounded constants, and they are what the file computes: ``alpha`` multiplies 1/√2 in the
    erf form and √(2/π) in the tanh form, ``beta`` multiplies 0.044715.
    """

    kind: str
    alpha: float = 1.0
    beta: float = 1.0


@dataclass(frozen=True, kw_only=True)
class MLP:
    """The structure that the closed form needs: z = W_L φ_{L−1}(… φ_1(W_1 a_0 + b_1) …) + b_L.

    ``activations[i]`` follows ``layers[i]``; there is one fewer than there are layers. No tensor appears twice.
    """

    layers: tuple[DenseLayer, ...]
    activations: tuple[Activation, ...]
    features: Callable[[Tensors], Tensor]
    """Model inputs → a_0 of shape (N, d_0), free of parameters (flattening, fixed scaling)."""


@dataclass(frozen=True, kw_only=True)
class LogitModel:
    """logits(parameters, inputs), ready to be differentiated twice, under vmap and forward mode."""

    function: Callable[[Tensors, Tensors], Tensor]
    """(parameters, inputs) → z of shape (N, C), or (N, 1) for one binary logit; no side effects."""
    parameters: Tensors
    """Every trainable tensor that z depends on, as stored in the file, in the file's order."""
    mlp: MLP | None
    """The closed-form structure where the function is a smooth MLP of these parameters, else None."""
    activations: tuple[str, ...]
    """Names of the nonlinearities met, in order, without repetition."""
    tied: tuple[str, ...]
    """Parameters that are consumed more than once."""
    head: str
    """What was stripped from the output to reach z: "none", "softmax", "log_softmax", "sigmoid", …"""
    classes: tuple[int | str, ...] | None
    """Class labels that the file declares, in logit order; None means 0..C−1."""
    reference: Callable[[Mapping[str, np.ndarray]], np.ndarray] | None
    """The same logits by an independent runtime, in the file's own precision; None where there is none."""
    reference_name: str | None


class Classifier(ABC):
    """What a reader returns. Reading has checked the file; nothing in it has been executed."""

    format: Literal["onnx", "torchscript", "module"]
    sha256: str | None
    """Hex digest of the file; None for a live module."""
    inputs: tuple[Input, ...]
    parameters: Tensors
    """All trainable tensors of the file by name, as stored."""
    load_seconds: float = 0.0
    """Seconds spent reading the file."""

    @abstractmethod
    def resolve(self, *, head: Head = "auto", output: str | None = None) -> LogitModel:
        """Picks the output, strips its head and gives the logits as a pure function.

        Args:
            head: What the output means; ``auto`` reads it off the graph.
            output: Name of the output; None takes the only one, or the one that leads to logits.

        Raises:
            ModelError: ``unknown_output``, ``ambiguous_head``, ``unsupported_head``, …
        """
