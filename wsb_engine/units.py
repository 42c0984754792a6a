"""Convert the report of an analysis of scale · H into the report of H."""

from __future__ import annotations

import sys
from typing import Any, TypeVar

from pydantic import BaseModel

from wsb_engine import report as r

POWERS: dict[type[BaseModel], dict[str, int]] = {
    r.Report: {"blocks": 1},
    r.Loss: {"gradient_norm": 1},
    r.Moments: {"trace": 1, "frobenius_squared": 2, "trace_standard_error": 1, "gauss_newton_trace": 1},
    r.Interval: {"lower": 1, "upper": 1},
    r.CertifiedInterval: {"lower": 1, "upper": 1},
    r.Enclosure: {"rounding_slack": 1, "alpha": 1, "beta": 1, "gamma": 1},
    r.Epsilon: {"values": 1},
    r.Modelled: {"upper": 1},
    r.Rounding: {"slack": 1},
    r.EndDerivation: {"inner": 1, "inner_slack": 1, "outer_slack": 1, "factorisation_error": 1},
    r.EnclosureDerivation: {"operator": 1, "slack": 1, "norms": 1},
    r.Continued: {"alpha": 1, "beta": 1},
    r.ProbeTerms: {"mean_square": 2, "factorisation_error": 1, "ritz_slack": 1},
    r.RoundingTerms: {"operator": 1, "product": 1, "square_error": 2, "trace_error": 1},
    r.SpectrumResult: {"eigenvalues": 1, "residuals": 1, "upper_bounds": 1},
    r.Density: {
        "grid": 1,
        "values": -1,
        "sigma": 1,
        "mean": 1,
        "mean_error": 1,
        "second_moment": 2,
        "second_moment_error": 2,
    },
    r.Population: {"estimate": 1},
    r.RowCurvature: {"mean": 1, "standard_deviation": 1},
    r.GaussNewton: {"eigenvalues": 1},
    r.Eigenvector: {"eigenvalue": 1, "residual": 1},
    r.NegativeCurvature: {"residual": 1},
    r.LayerCurvature: {"trace": 1, "frobenius_squared": 2, "wolkowicz_styan_upper": 1},
}
"""Fields whose unit is a power of H's, and that power; checks are relative, so they have none."""

Part = TypeVar("Part", bound=BaseModel)


def in_true_units(part: Part, scale: float) -> Part:
    """Return a report of H, or a part of one, given that of scale · H.

    Args:
        part: From an analysis whose loss was multiplied by ``scale``.
        scale: A power of two, so that division is exact except for overflow and underflow.
    """
    converted: Part = part if scale == 1 else _converted(part, scale)
    return converted


def _converted(value: Any, scale: float) -> Any:
    if isinstance(value, list):
        return [_converted(each, scale) for each in value]
    if not isinstance(value, BaseModel):
        return value
    powers = POWERS.get(type(value), {})
    changes = {
        name: _divided(field, scale, powers[name]) if name in powers else _converted(field, scale)
        for name, field in value
    }
    if isinstance(value, r.Interval | r.CertifiedInterval):
        # The largest number of a sign bounds anything.
        changes |= {name: max(-sys.float_info.max, min(sys.float_info.max, changes[name])) for name in powers}
    return value.model_copy(update=changes)


def _divided(value: Any, scale: float, power: int) -> Any:
    if isinstance(value, list):
        return [_divided(each, scale, power) for each in value]
    if value is None:
        return None
    for _ in range(abs(power)):
        value = value / scale if power > 0 else value * scale
    return value
