"""What a caller may ask of an analysis. The same names serve Python, JSON and command-line flags."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Moments = Literal["auto", "closed_form", "basis", "probes", "none"]
Ends = Literal["both", "largest"]
Spectrum = Literal["none", "top", "dense"]
DType = Literal["auto", "float64", "float32"]
Head = Literal["auto", "logits", "log_probabilities", "probabilities", "binary_logit", "binary_probability"]
Device = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d{1,3})?)$", max_length=16)]
Glob = Annotated[str, Field(min_length=1, max_length=512)]


class Options(BaseModel):
    """Options of one analysis; frozen and keyword-only.

    Raises:
        pydantic.ValidationError: for an unknown name or a value outside its range.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    moments: Moments = Field("auto", description="How tr H and ‖H‖_F² are got.")
    enclosure: bool = Field(True, description="Certify λ_max and λ_min from both sides.")
    relative_gap: float = Field(1e-6, gt=0, lt=1, description="Width of the enclosure at which to stop.")
    ends: Ends = Field(
        "both",
        description="What has to be that narrow: λ_max and λ_min, or λ_max alone, which takes fewer products; λ_min is "
        "then certified as far as it goes.",
    )
    failure_probability: float = Field(
        1e-6,
        ge=1e-300,
        le=0.5,
        description="Failure probability of each probabilistic end, 0 < δ ≤ 1/2. Rounding leaves a relative gap of "
        "about 1e-14/δ in float64.",
    )
    max_products: int = Field(300, ge=1, le=1_000_000, description="Hessian-vector products for the enclosure.")
    spectrum: Spectrum = Field("none", description="Eigenvalues to compute besides the bounds.")
    top: int = Field(10, ge=1, le=10_000, description="How many eigenvalues with spectrum = top.")
    density: bool = Field(False, description="Spectral density by stochastic Lanczos quadrature.")
    dtype: DType = Field("auto", description="Working precision; auto is float64 on a CPU and for small models.")
    device: Device = Field("auto", description="auto, cpu, cuda or cuda:N.")
    parameters: tuple[Glob, ...] = Field(
        ("*",), min_length=1, max_length=256, description="Globs over parameter names; a leading ! excludes."
    )
    head: Head = Field("auto", description="What the model's output means.")
    output: str | None = Field(None, max_length=512, description="Name of the output, when there are several.")
    seed: int = Field(0, ge=0, lt=2**63, description="Of every random number used.")
    memory_limit: int | None = Field(None, ge=1 << 20, le=1 << 50, description="Working memory in bytes.")
    time_limit: float | None = Field(None, gt=0, le=1e7, description="Seconds.")
    learning_rate: float | None = Field(None, gt=0, description="For stability_ratio in a policy.")
