"""Options of an analysis. Python, JSON and command-line flags share their names."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Moments = Literal["auto", "closed_form", "basis", "probes", "none"]
Ends = Literal["both", "largest"]
Spectrum = Literal["none", "top", "dense"]
DType = Literal["auto", "float64", "float32"]
LossKind = Literal["cross_entropy", "binary_cross_entropy"]
"""Each names a module of ``wsb_engine.curvature.losses``."""
Head = Literal["auto", "logits", "log_probabilities", "probabilities", "binary_logit", "binary_probability"]
Device = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d{1,3})?)$", max_length=16)]
Glob = Annotated[str, Field(min_length=1, max_length=512)]


class Options(BaseModel):
    """Options of one analysis; frozen and keyword-only.

    Raises:
        pydantic.ValidationError: for an unknown name or a value outside its range.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    moments: Moments = Field(
        "auto",
        description="How to compute tr H and ‖H‖_F². auto takes the closed form of an MLP, and elsewhere what the cost "
        "allows; ask for basis to get exact moments at any cost, or for none to skip them.",
    )
    enclosure: bool = Field(
        True, description="Certify λ_max and λ_min from both sides. Turn off if the Wolkowicz-Styan bound is enough."
    )
    relative_gap: float = Field(
        1e-6,
        gt=0,
        lt=1,
        description="Relative width of the enclosure at which to stop. Lower it to publish a value; raise it to save "
        "products.",
    )
    ends: Ends = Field(
        "both",
        description="Which ends to narrow to that width. largest takes fewer products if only λ_max matters; λ_min is "
        "then certified as far as the run went.",
    )
    failure_probability: float = Field(
        1e-6,
        ge=1e-300,
        le=0.5,
        description="Failure probability δ of each probabilistic end, 0 < δ ≤ 1/2. Rounding leaves a relative gap of "
        "about 1e-14/δ in float64, so a smaller δ may widen the enclosure.",
    )
    max_products: int = Field(
        300,
        ge=1,
        le=1_000_000,
        description="Limit on Hessian-vector products for the enclosure. Raise it if the report warns of "
        "enclosure_open.",
    )
    spectrum: Spectrum = Field(
        "none",
        description="Eigenvalues to compute in addition: the largest (top), or all of them (dense) for small models.",
    )
    top: int = Field(10, ge=1, le=10_000, description="Number of eigenvalues if spectrum is top.")
    density: bool = Field(
        False,
        description="Estimate the spectral density by stochastic Lanczos quadrature, to see the bulk of the spectrum.",
    )
    dtype: DType = Field(
        "auto",
        description="Working precision. auto is float64 on a CPU and for small models; ask for float64 if the report "
        "warns of float32_drift.",
    )
    device: Device = Field("auto", description="Device to compute on: auto, cpu, cuda or cuda:N.")
    parameters: tuple[Glob, ...] = Field(
        ("*",),
        min_length=1,
        max_length=256,
        description="Globs over parameter names; a leading ! excludes. Select layers to see what dominates λ_max.",
    )
    head: Head = Field(
        "auto", description="Meaning of the model's output. Set it if an error says that the output is ambiguous."
    )
    output: str | None = Field(None, max_length=512, description="Name of the output to use if there are several.")
    seed: int = Field(
        0, ge=0, lt=2**63, description="Seed of every random number. Change it to check a probabilistic enclosure."
    )
    memory_limit: int | None = Field(
        None,
        ge=1 << 20,
        le=1 << 50,
        description="Limit on working memory in bytes. Lower it on a shared machine; raise it if the report warns of "
        "memory.",
    )
    time_limit: float | None = Field(
        None, gt=0, le=1e7, description="Limit in seconds. The report then holds what is certified by then."
    )
    learning_rate: float | None = Field(
        None, gt=0, description="Learning rate of the training, for stability_ratio in a policy."
    )
