"""The report of one analysis: the one schema that Python, the command line and HTTP share.

Numbers are finite or null. Absent parts are null. The same input, options, seed and device give the same
report, ``timings`` aside. Symbols: t = tr H, q = ‖H‖_F², P the number of parameters, N of samples.
"""

from wsb_engine.report.curvature import (
    Bounds,
    Density,
    Enclosure,
    EnclosureStep,
    Epsilon,
    ExtremeBounds,
    LayerCurvature,
    Modelled,
    Moments,
    MomentsMethod,
    NamedBound,
    Orthogonality,
    Rounding,
    SampleShare,
    SpectrumResult,
)
from wsb_engine.report.fields import MAX_BLOCKS, MAX_STEPS, CertifiedInterval, Interval, Kind
from wsb_engine.report.inputs import BatchSummary, Engine, Loss, Model, Parameters, ParameterTensor, Parity
from wsb_engine.report.local import (
    MAX_SHARES,
    Alignment,
    ClassCurvature,
    Eigenvector,
    GaussNewton,
    GroupCurvature,
    LayerShare,
    NegativeCurvature,
)
from wsb_engine.report.population import Population, RowCurvature
from wsb_engine.report.report import SCHEMA_VERSION, Check, Citation, Plot, Report, ReportWarning

__all__ = [
    "MAX_BLOCKS",
    "MAX_SHARES",
    "MAX_STEPS",
    "SCHEMA_VERSION",
    "Alignment",
    "BatchSummary",
    "Bounds",
    "CertifiedInterval",
    "Check",
    "Citation",
    "ClassCurvature",
    "Density",
    "Eigenvector",
    "Enclosure",
    "EnclosureStep",
    "Engine",
    "Epsilon",
    "ExtremeBounds",
    "GaussNewton",
    "GroupCurvature",
    "Interval",
    "Kind",
    "LayerCurvature",
    "LayerShare",
    "Loss",
    "Model",
    "Modelled",
    "Moments",
    "MomentsMethod",
    "NamedBound",
    "NegativeCurvature",
    "Orthogonality",
    "ParameterTensor",
    "Parameters",
    "Parity",
    "Plot",
    "Population",
    "Report",
    "ReportWarning",
    "Rounding",
    "RowCurvature",
    "SampleShare",
    "SpectrumResult",
]
