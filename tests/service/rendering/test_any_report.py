"""Whatever the schema allows is rendered: parts absent, lists empty or too short, any number, any text."""

from __future__ import annotations

import os
import types
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin
from xml.etree import ElementTree

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, JsonValue

from service.policies.schemas import Verdict
from service.rendering import render_html, render_junit, render_markdown
from wsb_engine.errors import OptionsError
from wsb_engine.options import Options
from wsb_engine.presentation.plots import PLOTS
from wsb_engine.report import Plot, Report

OPTIONS = [Options(), Options(devices=["cpu"], class_weights=[1, 2], optimizer={"kind": "adam"}, population=0.9)]
SCALARS: dict[Any, st.SearchStrategy[Any]] = {
    float: st.floats(allow_nan=False, allow_infinity=False),
    int: st.integers(0, 10**12),
    str: st.text(max_size=30),
    bool: st.booleans(),
    type(None): st.none(),
    JsonValue: st.text(max_size=5),
}


def anything_for(kind: Any, constraints: Sequence[Any] = ()) -> st.SearchStrategy[Any]:
    """Any value that the schema allows there."""
    if kind is float and constraints:
        return st.floats(0, 1)
    if kind in SCALARS:
        return SCALARS[kind]
    if kind is Options:
        return st.sampled_from(OPTIONS)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return anything_for(arguments[0], arguments[1:])
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin in (Union, types.UnionType):
        return st.one_of(*(anything_for(argument) for argument in arguments))
    if origin is list:
        return st.lists(anything_for(arguments[0]), max_size=4)
    if origin is dict:
        return st.dictionaries(anything_for(arguments[0]), anything_for(arguments[1]), max_size=3)
    assert issubclass(kind, BaseModel)
    fields = {name: anything_for(field.annotation, field.metadata) for name, field in kind.model_fields.items()}
    return st.fixed_dictionaries(fields).map(kind.model_validate)


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], deadline=None, max_examples=15)
@given(report=anything_for(Report), verdict=st.none() | anything_for(Verdict))
def test_any_report_and_verdict_can_be_rendered(report: Report, verdict: Verdict | None) -> None:
    assert render_html(report, verdict).endswith("</html>")
    assert render_markdown(report, verdict)
    ElementTree.fromstring(render_junit(report, verdict))  # noqa: S314 - ours
    assert report._repr_html_().endswith("</div>")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Glyph .* missing from font:UserWarning")
@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], deadline=None, max_examples=5)
@given(report=anything_for(Report), show=st.none() | st.sampled_from(PLOTS), log=st.none() | st.booleans())
def test_any_report_can_be_plotted_or_lacks_what_is_asked_for(
    report: Report, show: Plot | None, log: bool | None
) -> None:
    if os.environ.get("CI") != "true":
        pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    try:
        axes = report.plot(show=show, log=log)
    except OptionsError as error:
        if error.code != "plot_unavailable":
            raise
        return
    axes.figure.draw_without_rendering()
