"""What an analysis is expected to cost, before anything runs; no torch is needed to read it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class PhaseEstimate(_Part):
    """Expected cost of one phase."""

    name: str = Field(max_length=32, description="Name of the phase, as in progress and timings.")
    operations: float = Field(ge=0, description="Additions and multiplications, plus a charge for memory traffic.")
    bytes: int = Field(ge=0, description="Memory held at once, the model and the batch included.")
    seconds: float = Field(ge=0, description="Operations at the rate of the device.")


class Estimate(_Part):
    """Expected cost of one analysis.

    Counted on a few samples; the number of Hessian-vector products is a typical one, since it depends on the spectrum.

    Examples:
        >>> import wsb
        >>> estimate = wsb.estimate(wsb.load_model("model.onnx"), wsb.load_batch("batch.npz"))
        >>> [phase.name for phase in estimate.phases]
        ['setup', 'loss', 'rounding', 'moments', 'enclosure']
        >>> estimate.dtype, estimate.left_out
        ('float64', [])
    """

    model_config = ConfigDict(json_schema_extra={"description": "Expected cost of one analysis."})

    device: str = Field(max_length=32)
    dtype: str = Field(max_length=16, description="Working precision.")
    products: int = Field(ge=0, description="Hessian-vector products assumed for the enclosure.")
    rate: float = Field(gt=0, description="Operations per second assumed.")
    operations: float = Field(ge=0, description="Sum over the phases.")
    bytes: int = Field(ge=0, description="Largest of the phases.")
    seconds: float = Field(ge=0, description="Sum over the phases.")
    phases: list[PhaseEstimate] = Field(max_length=32)
    left_out: list[str] = Field(max_length=32, description="What the analysis would leave out, and how to get it.")
