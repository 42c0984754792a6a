"""Inputs that were once answered wrongly, or refused without need, against values from independent oracles.

A folder of ``tests/cases`` holds a model, a batch and ``case.json``: what it ``shows``, ``options``, right values
(``expect``) with the ``oracle`` that gave them, how far values may be off (``tolerance``), by how much the truth may
lie outside of its enclosure (``outside``, the oracle's own error), and ``or_codes`` of refusals that are right as well.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.forms import full

import wsb_engine as wsb

CASES = Path(__file__).parent.parent / "cases"
NAMES = sorted(path.parent.name for path in CASES.glob("*/case.json"))
SLOW = {
    *(name for name in NAMES if name.startswith("coupled_attention_1500") or name.endswith(("_batch_1", "_batch_8"))),
    *("coupled_batchnorm_1500_onnx", "coupled_by_hand_1500_onnx", "rotary_legacy_fixed", "float32_two_groups_b"),
    *("float32_two_groups_c", "float32_two_groups_d", "coupled_by_hand_1500_pt", "coupled_batchnorm_1500_pt"),
    *("coupled_attention_40_pt", "rotary_legacy", "masked_encoder", "vit_block_example_batch_2"),
    *("trace_and", "trace_or"),
    *(f"smooth_{name}" for name in ("fmod_pt", "hardsigmoid_pt", "l1_norm_pt", "sqrt_square_onnx", "where_relu_onnx")),
}
"""Cases whose siblings are tried on every change."""
THROUGH_THE_COMMAND = ["huge_logit_dense", "one_sample_bias_only", "float32_two_groups_a", "masked_attention"]


def read(name: str) -> tuple[dict[str, Any], Path, Path]:
    folder = CASES / name
    case = json.loads((folder / "case.json").read_text())
    model = next(path for path in sorted(folder.glob("model.*")) if path.suffix in (".onnx", ".pt"))
    return case, model, next(folder.glob("batch.*"))


def options(case: dict[str, Any]) -> dict[str, Any]:
    given = dict(case["options"])
    if isinstance(given.get("parameters"), str):
        given["parameters"] = [given["parameters"]]
    return given


def judge(case: dict[str, Any], report: wsb.Report) -> list[str]:
    """What is wrong with a report."""
    expect, tolerance, wrong = case["expect"], case["tolerance"], []
    assert expect, "the input has to be refused"

    def close(name: str, found: float, size: float, default: float) -> None:
        if abs(found - expect[name]) > tolerance.get(name, default) * size:
            wrong.append(f"{name} is {found!r}, not {expect[name]!r}")

    if report.model.parameters.count != expect.get("parameters", report.model.parameters.count):
        wrong.append(f"{report.model.parameters.count} parameters")
    if report.model.smooth != expect.get("smooth", report.model.smooth):
        wrong.append(f"smooth: {report.model.smooth}, {report.model.nonsmooth_operators}")
    if "loss" in expect:
        close("loss", report.loss.value, abs(expect["loss"]), 1e-6)
    if report.moments is not None and report.moments.exact and "trace" in expect:
        norm = math.sqrt(expect["frobenius_squared"])
        close("trace", report.moments.trace, max(abs(expect["trace"]), norm), 1e-6)
        close("frobenius_squared", report.moments.frobenius_squared, norm * norm, 1e-6)
    size = max((abs(expect[end]) for end in ("lambda_max", "lambda_min") if end in expect), default=0.0)
    for end in ("lambda_max", "lambda_min"):
        if end not in expect:
            continue
        assert report.enclosure is not None, report.warnings
        found: wsb.report.CertifiedInterval = getattr(report.enclosure, end)
        allowed = case.get("outside", 0.0) * size
        if not found.lower - allowed <= expect[end] <= found.upper + allowed:
            wrong.append(f"{end} = {expect[end]!r} lies outside of [{found.lower!r}, {found.upper!r}]")
        reach = max(abs(found.lower - expect[end]), abs(found.upper - expect[end]))
        if reach > tolerance.get(end, 1e-3) * size:
            wrong.append(f"{end} in [{found.lower!r}, {found.upper!r}] reaches too far")
    if "eigenvalue" in tolerance and report.spectrum is not None and report.spectrum.method == "dense":
        for end, value in (
            ("lambda_max", report.spectrum.eigenvalues[0]),
            ("lambda_min", report.spectrum.eigenvalues[-1]),
        ):
            if end in expect and abs(value - expect[end]) > tolerance["eigenvalue"] * size:
                wrong.append(f"the eigenvalue {value!r} is not {end} = {expect[end]!r}")
    wrong += [f"{check.name} failed" for check in report.checks if not check.passed]
    return wrong


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:There is a performance drop:UserWarning")
@pytest.mark.parametrize("name", [full(n) if n in SLOW else n for n in NAMES])
def test_a_case_holds(name: str) -> None:
    case, model, batch = read(name)
    try:
        report = wsb.analyze(
            wsb.load_model(model), wsb.load_batch(batch), wsb.Options(**options(case)), needs=["moments"]
        )
    except wsb.EngineError as error:
        if error.code in case["or_codes"]:
            return
        raise
    if {warning.code for warning in report.warnings} & set(case.get("or_warnings", ())):
        return
    assert not judge(case, report)


@pytest.mark.slow
@pytest.mark.parametrize("name", THROUGH_THE_COMMAND)
def test_a_case_holds_through_the_command(name: str, tmp_path: Path) -> None:
    case, model, batch = read(name)
    flags: list[str] = []
    for option, value in case["options"].items():
        flag = "--" + option.replace("_", "-")
        flags += [part for each in (value if isinstance(value, list) else [value]) for part in (flag, str(each))]
    out = tmp_path / "report.json"
    command = [
        sys.executable,
        "-m",
        "service.cli.commands",
        "analyze",
        str(model),
        str(batch),
        "--json",
        str(out),
        *flags,
    ]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, "NO_COLOR": "1"})
    assert ended.returncode == 0, ended.stderr
    assert not judge(case, wsb.Report.model_validate_json(out.read_text()))


def test_there_are_cases_of_every_kind() -> None:
    kinds = ("confidently", "coupled", "float32", "huge", "last", "linearsvc", "masked", "near", "norm", "one")
    for kind in (*kinds, "parser", "rotary", "saturated", "smooth", "tied", "trace", "unnormalised", "vit"):
        assert any(name.startswith(kind) for name in NAMES)
