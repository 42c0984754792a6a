"""What was analysed: the model, the batch, the loss, and what computed the report."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from wsb_engine.options import LossKind
from wsb_engine.report.fields import Count, Few, Many, Name, Part, Weights


class Engine(Part):
    """What computed the report."""

    version: Name
    torch: Name
    device: Name
    dtype: Literal["float64", "float32"]
    seed: int
    sandbox: Few[Name] | None = None
    """Active protections; null if there are none."""


class ParameterTensor(Part):
    name: Name
    shape: Few[Count]
    count: Count


class Parameters(Part):
    count: Count
    tensors: Many[ParameterTensor]
    tied: Many[Name]
    """Names of tensors that the model uses more than once; each counts once."""
    stored_dtypes: Annotated[dict[Name, Count], Field(max_length=64)] | None = None
    """Number of parameters by the dtype that the model stores them in; null in reports before schema 1.4."""
    left_out: Many[ParameterTensor] | None = None
    """Other stored floating tensors that the logits depend on, taken for constants: masks, tables of positions, running
    statistics; single numbers only if they may have been parameters. H is that of the file: what its exporter dropped
    or merged is in no list. Null in earlier reports, and for models that declare their parameters."""


class Parity(Part):
    """Agreement of the logits with those of an independent runtime on the same batch."""

    reference: Name
    max_abs_error: float


class Model(Part):
    format: Literal["onnx", "torchscript", "pt2", "module"]
    sha256: Name | None
    architecture: Literal["mlp", "general"]
    parameters: Parameters
    activations: Few[Name]
    smooth: bool
    nonsmooth_operators: Few[Name]
    head: Name
    parity: Parity | None


class BatchSummary(Part):
    sha256: Name | None
    samples: Count
    classes: Count | None
    """Number of classes; 2 for one binary logit, the number of labels of ``multilabel``, null of ``squared_error``."""
    positions: Count | None = None
    """Number of labels of each sample (tokens, pixels); null if a sample has one."""


class Loss(Part):
    kind: LossKind
    value: float
    gradient_norm: float
    accuracy: float | None
    """Weighted share of samples (of positions that count) whose most probable class is that of the label; null if the
    loss predicts no classes."""
    ignored: Count | None = None
    """Number of labels that do not count, by ``ignore_index``; null if all do."""
    ignore_index: int | None = None
    """Label that does not count; null if there is none."""
    label_smoothing: float | None = None
    """As the option of that name was set, and null if it was not, as for those that follow."""
    class_weights: Weights | None = None
    pos_weight: Weights | None = None
    focal_gamma: float | None = None
    """Exponent γ of the focal loss; null for other losses."""
