"""Reports to apply policies to, with the numbers that a test names."""

from __future__ import annotations

from typing import Any

from wsb_engine import report as r


def enclosed(lower: float, upper: float) -> r.CertifiedInterval:
    return r.CertifiedInterval(
        lower=lower, upper=upper, relative_gap=None, kind="deterministic", failure_probability=None
    )


def report(
    lambda_max: tuple[float, float] | None = (40.0, 41.0),
    lambda_min: tuple[float, float] = (-3.0, -2.0),
    **parts: Any,
) -> r.Report:
    """A small report; ``parts`` replace its parts."""
    enclosure = None
    if lambda_max is not None:
        enclosure = r.Enclosure(
            lambda_max=enclosed(*lambda_max),
            lambda_min=enclosed(*lambda_min),
            hessian_vector_products=12,
            rounding_slack=0.0,
        )
    values: dict[str, Any] = {
        "engine": r.Engine(version="0", torch="0", device="cpu", dtype="float64", seed=0),
        "model": r.Model(
            format="onnx",
            sha256="m" * 64,
            architecture="mlp",
            parameters=parameters(),
            activations=["tanh"],
            smooth=True,
            nonsmooth_operators=[],
            head="none",
            parity=None,
        ),
        "batch": r.BatchSummary(sha256="b" * 64, samples=8, classes=3),
        "loss": r.Loss(kind="cross_entropy", value=0.5, gradient_norm=0.1, accuracy=0.75),
        "moments": r.Moments(method="closed_form", exact=True, trace=60.0, frobenius_squared=1700.0),
        "bounds": r.Bounds(
            wolkowicz_styan=r.ExtremeBounds(
                lambda_max=r.Interval(lower=5.0, upper=45.0), lambda_min=r.Interval(lower=-40.0, upper=1.0)
            )
        ),
        "enclosure": enclosure,
        "spectrum": None,
        "layers": [
            r.LayerCurvature(name="0", parameters=6, trace=20.0, frobenius_squared=500.0, wolkowicz_styan_upper=22.0)
        ],
        "blocks": [[22.0]],
        "orthogonality": None,
        "checks": [r.Check(name="parity", passed=True, value=0.0, tolerance=1.0)],
        "warnings": [],
        "timings": {"total": 0.1},
        **parts,
    }
    return r.Report(**values)


def parameters(**shapes: list[int]) -> r.Parameters:
    """Tensors of these shapes."""
    shapes = shapes or {"w": [2, 3]}
    tensors = []
    for name, shape in shapes.items():
        count = 1
        for size in shape:
            count *= size
        tensors.append(r.ParameterTensor(name=name, shape=shape, count=count))
    return r.Parameters(count=sum(tensor.count for tensor in tensors), tensors=tensors, tied=[])


def population(lower: float = 30.0, upper: float = 60.0, confidence: float = 0.95, **update: object) -> r.Population:
    """What a batch of 400 rows tells of its distribution."""
    rows = r.RowCurvature(mean=40.0, standard_deviation=80.0, skewness=3.5)
    found = r.Population(
        confidence=confidence,
        lambda_max=r.Interval(lower=lower, upper=upper),
        estimate=39.0,
        factor=1.4951,
        rows=400,
        rows_for_ten_percent=1537,
        largest_share=r.SampleShare(row=17, share=0.031),
        in_sample=rows,
        cross_fitted=rows,
        folds=5,
    )
    return found.model_copy(update=update)
