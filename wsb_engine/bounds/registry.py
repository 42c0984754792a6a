"""Every bound that an analysis evaluates and a report lists, in the order of the report."""

from __future__ import annotations

from wsb_engine.bounds.bound import Bound
from wsb_engine.bounds.frobenius_norm import FROBENIUS_NORM
from wsb_engine.bounds.wolkowicz_styan import WOLKOWICZ_STYAN

BOUNDS: tuple[Bound, ...] = (WOLKOWICZ_STYAN, FROBENIUS_NORM)
