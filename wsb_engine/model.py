"""A classifier as a pure function of (parameters, inputs), whatever file or module it came from.

A reader (``wsb_engine.formats``) turns a file into a ``Classifier``. ``Classifier.resolve`` then selects the output and
strips the head (softmax, sigmoid, …), both of which depend on options, and returns a ``LogitModel``: the function that
the loss and its Hessian are computed from.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from wsb_engine.options import Head

Tensors = Mapping[str, Tensor]
Form = Literal["row", "positions", "labels", "values"]
"""What a loss takes for logits: one row of them for each sample; one for each position (token, pixel) of a sample; a
logit for each label of a sample, by itself; or the output as it is.
"""


@dataclass(frozen=True, kw_only=True)
class Input:
    """One input of a model."""

    name: str
    shape: tuple[int | None, ...] | None
    """Declared shape, sample axis first; None for a free dimension, or instead of the tuple if none is declared."""
    dtype: torch.dtype | None
    """Declared dtype, None if the file declares none; floating-point inputs are cast to the working dtype."""


@dataclass(frozen=True, kw_only=True)
class DenseLayer:
    """h = W a + b of an MLP; ``weight`` and ``bias`` name entries of ``LogitModel.parameters``."""

    weight: str
    transposed: bool
    """False if the tensor is stored as [d_out, d_in], True if as [d_in, d_out]."""
    bias: str | None
    """Name of a tensor with d_out elements, of any shape; None for a layer without a bias."""


@dataclass(frozen=True, kw_only=True)
class Activation:
    """A smooth elementwise function between two layers.

    ``kind`` names an entry of ``wsb_engine.curvature.closed_form.activations``. For ELU, ``alpha`` is the slope. A file
    that spells a GELU out has rounded its constants, and the rounded ones are what it computes: ``alpha`` multiplies
    1/√2 in the erf form and √(2/π) in the tanh form, ``beta`` multiplies 0.044715.
    """

    kind: str
    alpha: float = 1.0
    beta: float = 1.0


@dataclass(frozen=True, kw_only=True)
class MLP:
    """The structure that the closed form needs: z = W_L φ_{L−1}(… φ_1(W_1 a_0 + b_1) …) + b_L.

    ``activations[i]`` follows ``layers[i]``, so there is one activation fewer than layers. No tensor occurs twice.
    """

    layers: tuple[DenseLayer, ...]
    activations: tuple[Activation, ...]
    features: Callable[[Tensors], Tensor]
    """Model inputs → a_0 of shape (N, d_0); depends on no parameter (flattening, fixed scaling)."""


@dataclass(frozen=True, kw_only=True)
class LogitModel:
    """The logits as a function of (parameters, inputs), twice differentiable, under vmap and in forward mode too."""

    function: Callable[[Tensors, Tensors], Tensor]
    """(parameters, inputs) → z of shape (N, C), or (N, 1) for one binary logit; no side effects. In other forms than
    a row, z has the shape of the output."""
    parameters: Tensors
    """Every trainable tensor that z depends on, as stored, in the file's order."""
    mlp: MLP | None
    """The structure for the closed form if the function is a smooth MLP of these parameters, else None."""
    activations: tuple[str, ...]
    """Names of the nonlinearities, without repetition, in order of first use."""
    tied: tuple[str, ...]
    """Names of parameters that are used more than once."""
    head: str
    """What was stripped from the output to reach z: "none", "softmax", "log_softmax", "sigmoid", …"""
    head_known: bool = True
    """False if neither the graph nor the caller says whether the output is logits."""
    classes: tuple[int | str, ...] | None = None
    """Class labels that the file declares, in the order of the logits; None for 0..C−1."""
    class_axis: int | None = None
    """Axis of the output over which a softmax was stripped, for positions; None if none was, or if it is unknown."""
    reference: Callable[[Mapping[str, np.ndarray]], np.ndarray] | None = None
    """Inputs by name → the same logits from an independent runtime, in the file's precision; None if there is none."""
    reference_name: str | None = None
    """Name of that runtime."""
    rounds_to: tuple[str, ...] = ()
    """Dtypes shorter than float32 to which the file rounds values on the way to z; ``function`` does not."""
    left_out: Tensors = field(default_factory=dict)
    """Stored floating tensors of several elements that z depends on and that are not parameters."""
    warnings: tuple[tuple[str, str], ...] = ()
    """What a report has to say about how the file was read: codes and messages."""


class Classifier(ABC):
    """A classifier as ``load_model`` and ``from_module`` return it. A file was checked, and nothing in it executed.

    Examples:
        >>> import wsb
        >>> classifier, batch = wsb.load_model("model.onnx"), wsb.load_batch("batch.npz")
        >>> classifier.inputs[0].name, classifier.inputs[0].shape, sorted(classifier.parameters)
        ('x', (None, 4), ['b0', 'b1', 'w0', 'w1'])
        >>> model = classifier.resolve()
        >>> model.head, model.activations
        ('none', ('tanh',))
        >>> model.function(model.parameters, batch.x).shape
        torch.Size([12, 3])
    """

    format: Literal["onnx", "torchscript", "pt2", "module"]
    sha256: str | None
    """Hex digest of the file; None for a live module."""
    inputs: tuple[Input, ...]
    """The model's inputs, in order."""
    parameters: Tensors
    """All trainable tensors by name, as stored."""
    constants: Tensors = MappingProxyType({})
    """Other stored floating tensors, by name; ``resolve`` can take them for parameters."""
    derived: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    """Stored tensor → the module's parameters that the exporter computed it from, if the file records them."""
    load_seconds: float = 0.0
    """Seconds spent reading the file."""

    @abstractmethod
    def resolve(
        self, *, head: Head = "auto", output: str | None = None, include: tuple[str, ...] = (), form: Form = "row"
    ) -> LogitModel:
        """Select the output, strip its head and return the logits as a pure function.

        Args:
            head: Meaning of the output; ``auto`` infers it from the graph.
            output: Name of the output; None selects the only one, or the one that leads to logits.
            include: Names of ``constants`` to take for parameters.
            form: What the loss takes for logits.

        Raises:
            ModelError: ``unknown_output``, ``ambiguous_head``, ``unsupported_head``, …
        """
