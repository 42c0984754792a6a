"""Options of an analysis. Python, JSON and command-line flags share their names."""

from __future__ import annotations

import json
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from wsb_engine.optimizer import Optimizer

Moments = Literal["auto", "closed_form", "basis", "probes", "none"]
Stop = Literal["gap", "decided"]
Ends = Literal["both", "largest"]
Spectrum = Literal["none", "top", "dense"]
Basis = Literal["auto", "full", "three_vectors"]
DType = Literal["auto", "float64", "float32"]
LossKind = Literal[
    "cross_entropy", "token_cross_entropy", "binary_cross_entropy", "multilabel", "focal", "squared_error"
]
"""Each names a module of ``wsb_engine.curvature.losses``."""
LossOption = Literal["auto", LossKind]
MAX_NUMBERS = 10_000
"""Most weights of classes or labels; a report repeats them."""
SMALLEST_WEIGHT, LARGEST_WEIGHT = 1e-100, 1e100
"""Range of weights of classes and labels other than 0: products of weights neither overflow nor lose digits."""
Scaling = Literal["none", "elementwise", "tensor", "filter"]
LEAST_CONFIDENCE, LARGEST_CONFIDENCE = 0.5, 0.9999
"""Range of the confidence of limits that hold for many rows: further out in the tails they hold for no usual number."""
Detail = Literal["summary", "certified"]
Head = Literal["auto", "logits", "log_probabilities", "probabilities", "binary_logit", "binary_probability"]
Device = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d{1,3})?)$", max_length=16)]


def _as_typed(given: object) -> object:
    """Take a list of words, as commands and forms pass them on, for the devices that they name."""
    if isinstance(given, (list, tuple)) and all(isinstance(word, str) for word in given):
        names = [name for word in given for name in word.split(",")]
        return "all" if names == ["all"] else tuple(names)
    return given


def _as_numbers(given: object) -> object:
    """Take one number for a list of one, and words, as commands and forms pass them on, for the numbers they list."""
    if isinstance(given, (int, float)) and not isinstance(given, bool):
        return (given,)
    if isinstance(given, (list, tuple)) and given and all(isinstance(word, str) for word in given):
        return tuple(number for word in given for number in word.split(","))
    # Strict validation takes a list for a tuple only in JSON itself.
    return tuple(given) if isinstance(given, list) else given


def _as_object(given: object) -> object:
    """Take JSON, as commands and forms pass it on, for the object that it describes.

    Raises:
        ValueError: for text that is no JSON.
    """
    if not isinstance(given, str):
        return given
    try:
        return json.loads(given)
    except (ValueError, RecursionError) as error:
        raise ValueError('it is no JSON; an example is {"kind": "sgd", "momentum": 0.9}') from error


OneDevice = Annotated[str, Field(pattern=r"^(cpu|cuda:\d{1,3})$", max_length=16)]
Devices = Annotated[
    Annotated[tuple[OneDevice, ...], Field(min_length=1, max_length=64, fail_fast=True)] | Literal["all"],
    BeforeValidator(_as_typed),
]
Glob = Annotated[str, Field(min_length=1, max_length=512)]


def _in_range(weight: float) -> float:
    if weight and not SMALLEST_WEIGHT <= weight <= LARGEST_WEIGHT:
        raise ValueError(f"a weight should be 0, or from {SMALLEST_WEIGHT:g} to {LARGEST_WEIGHT:g}")
    return weight


Weight = Annotated[float, Field(ge=0), AfterValidator(_in_range)]
Numbers = Annotated[
    Annotated[tuple[Weight, ...], Field(min_length=1, max_length=MAX_NUMBERS, fail_fast=True)],
    BeforeValidator(_as_numbers),
]


class Options(BaseModel):
    """Options of one analysis; frozen and keyword-only.

    Raises:
        pydantic.ValidationError: for an unknown name or a value outside its range.

    Examples:
        >>> import wsb
        >>> options = wsb.Options(spectrum="top", top=3)
        >>> options.relative_gap
        1e-06
        >>> options.model_copy(update={"seed": 1}).model_dump(exclude_defaults=True)
        {'spectrum': 'top', 'top': 3, 'seed': 1}
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, json_schema_extra={"description": "Options of one analysis."}
    )

    moments: Moments = Field(
        "auto",
        description="How to compute tr H and ‖H‖_F². auto uses the closed form for smooth MLPs, and otherwise leaves "
        "them out if they would cost more than half of the enclosure. Set basis for exact moments at any cost, probes "
        "for a fast upper bound on ‖H‖_F², none to skip them.",
    )
    enclosure: bool = Field(
        True, description="Certify λ_max and λ_min from both sides. Turn off if the Wolkowicz-Styan bound is enough."
    )
    relative_gap: float = Field(
        1e-6,
        gt=0,
        lt=1,
        description="Relative width at which the enclosure is narrow enough. Lower it for more digits; raise it to "
        "save Hessian-vector products.",
    )
    stop: Stop = Field(
        "gap",
        description="When the enclosure is narrow enough: at the relative gap, or already when every rule of a policy "
        "on λ_max and λ_min is decided. Set decided for a gate: it takes fewer Hessian-vector products.",
    )
    ends: Ends = Field(
        "both",
        description="Which ends of the spectrum to narrow to the relative gap. Set largest if only λ_max matters: it "
        "takes fewer products, and λ_min is certified as far as they reach.",
    )
    failure_probability: float = Field(
        1e-6,
        ge=1e-300,
        le=0.5,
        description="Failure probability δ of each probabilistic end, 0 < δ ≤ 1/2. Lower it for more confidence; "
        "rounding leaves a relative gap of about 1e-14/δ in float64, so a small δ may widen the enclosure.",
    )
    max_products: int = Field(
        300,
        ge=1,
        le=1_000_000,
        description="Limit on Hessian-vector products for the enclosure and the largest eigenvalues. Raise it if the "
        "report warns of enclosure_open or top_not_converged.",
    )
    basis: Basis = Field(
        "auto",
        description="How to certify λ_max: with a basis of all vectors (full), or from three vectors, whatever the "
        "number of products, without certainty or eigenvectors. auto keeps a basis if memory holds it for "
        "max_products. Set three_vectors to save memory.",
    )
    spectrum: Spectrum = Field(
        "none",
        description="Eigenvalues to compute in addition: the largest (top), or all of them (dense) for small models.",
    )
    top: int = Field(
        10,
        ge=1,
        le=10_000,
        description="Number of eigenvalues if spectrum is top. Raise it to see where the outliers end.",
    )
    density: bool = Field(
        False,
        description="Estimate the spectral density by stochastic Lanczos quadrature. Turn on to see the bulk of the "
        "spectrum.",
    )
    dtype: DType = Field(
        "auto",
        description="Working precision. auto is float64 unless that would take too long, or too much of a GPU's "
        "memory; then float32. Set float64 if the report warns of float32_drift or float32_chosen.",
    )
    device: Device = Field(
        "auto",
        description="Device to compute on: auto, cpu, cuda or cuda:N. auto is the current GPU, or the CPU if there is "
        "none or it is expected to be done sooner. Set cuda:N to choose another.",
    )
    devices: Devices | None = Field(
        None,
        description="Devices that share the samples of one analysis, in place of device: a list such as cuda:0,cuda:1, "
        "or all for every GPU. The first leads. Set it if one device takes too long or has too little memory.",
    )
    parameters: tuple[Glob, ...] = Field(
        ("*",),
        min_length=1,
        max_length=256,
        fail_fast=True,
        description="Globs over parameter names; a leading ! excludes. Select layers to see which of them dominate "
        "λ_max. A glob that matches no parameter, but a stored tensor that was left out, includes that tensor.",
    )
    head: Head = Field(
        "auto",
        description="Meaning of the model's output. auto infers it. Set it if an error says that the output is "
        "ambiguous.",
    )
    loss: LossOption = Field(
        "auto",
        description="Loss of the batch. auto is the cross-entropy of one label a sample, binary for one logit, or of "
        "one label for each token or pixel if y has several a sample. Set it if the model was trained with another.",
    )
    label_smoothing: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of each label that cross-entropies spread evenly over all classes. Set it to the value of "
        "the training.",
    )
    class_weights: Numbers | None = Field(
        None,
        description="Weight of each class in cross-entropies, in the order of the logits; the mean divides by the "
        "weights of the labels, except for the focal loss. Set it to the weights of the training.",
    )
    ignore_index: int | None = Field(
        None,
        ge=-(2**63),
        lt=2**63,
        description="Label that does not count in cross-entropies; by default -100 if samples have several labels, "
        "else none. Set it to the label that marks padding or unlabelled pixels.",
    )
    pos_weight: Numbers | None = Field(
        None,
        description="Weight of positive labels in binary cross-entropies: one number, or one for each logit. Set it to "
        "the value of the training.",
    )
    output: str | None = Field(
        None, max_length=512, description="Name of the model's output to use. Set it if there are several."
    )
    seed: int = Field(
        0,
        ge=0,
        lt=2**63,
        description="Seed of all random numbers. Change it to repeat a probabilistic enclosure independently.",
    )
    memory_limit: int | None = Field(
        None,
        ge=1 << 20,
        le=1 << 50,
        description="Limit on working memory in bytes; by default half of what the process may have in total. Lower it "
        "on a shared machine; raise it if the report warns of enclosure_memory.",
    )
    time_limit: float | None = Field(
        None,
        gt=0,
        le=1e7,
        description="Limit on the analysis in seconds. Set it to get what is certified by then instead of waiting for "
        "everything.",
    )
    learning_rate: float | None = Field(
        None, gt=0, description="Learning rate of the training. Set it to use stability_ratio in a policy."
    )
    population: float | None = Field(
        None,
        ge=LEAST_CONFIDENCE,
        le=LARGEST_CONFIDENCE,
        description="Confidence, such as 0.95, of an interval for λ_max of the distribution that the rows come from. "
        "Set it to learn what the batch tells beyond itself; give at least 200 independent rows that were not trained "
        "on.",
    )
    scaling: Scaling = Field(
        "none",
        description="Also certify λ_max of D H D, with D the absolute value of each parameter (elementwise), the "
        "Frobenius norm of its tensor (tensor), or that of its filter, and the absolute value of a bias (filter). Set "
        "elementwise to compare networks whose layers are scaled differently.",
    )
    optimizer: Annotated[Optimizer, BeforeValidator(_as_object)] | None = Field(
        None,
        description="Optimizer of the training, as JSON: its kind (sgd, momentum, nesterov, adam, amsgrad, adamw, "
        "nadam, rmsprop) and settings by torch's names. Set it for the largest stable learning rate; all but the first "
        "three need their state.",
    )
    layers: Detail = Field(
        "summary",
        description="Curvature by layer: from the closed form of an MLP alone (summary), or with the certified λ_max "
        "of each layer's diagonal block, of any model (certified). Set certified to see where the sharpness is.",
    )
    groups: tuple[Glob, ...] = Field(
        (),
        max_length=256,
        fail_fast=True,
        description="Globs over parameter names; the λ_max of the diagonal block of each group that a glob names is "
        "certified. Set it to compare parts of the model, such as head.* and *.bias; groups may overlap.",
    )
    classes: Detail = Field(
        "summary",
        description="Set certified to certify λ_max of the mean loss over the labels of each class by itself, and see "
        "which classes are sharp.",
    )
    gauss_newton: bool = Field(
        False,
        description="Split H into the Gauss-Newton matrix G and the rest: certify λ_max(G) and ‖H − G‖, and compute "
        "the eigenvalues of G if samples times logits are few. Turn on to see how much curvature is the loss's own.",
    )
    alignment: bool = Field(
        False,
        description="Compute how the gradient lies to the largest eigenvectors, as many as top, its curvature "
        "gᵀHg/gᵀg, and in which layers the directions of the largest and of negative curvature lie.",
    )
    focal_gamma: float = Field(
        2.0,
        ge=0,
        le=100,
        description="Exponent γ of the focal loss, which weighs a sample by (1 − p)^γ. Set it to the value of the "
        "training.",
    )
