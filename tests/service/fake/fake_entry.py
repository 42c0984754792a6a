"""Stands in for the engine where the plumbing around it is tested; obeys ``options.output``."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import wsb_engine
from wsb_engine.errors import ModelError, ResourceError
from wsb_engine.report import BatchSummary, Check, Engine, Loss, Model, Parameters, Report, ReportWarning


def run(request: dict[str, Any], emit_progress: Callable[[dict[str, Any]], None]) -> str:
    """Does what ``output`` says: nothing, sleep:SECONDS, small:SECONDS, tell:SECONDS:PROGRESS, terms, fail, crash,
    allocate:BYTES, lose (its device, unless that is the CPU), garbage, forge:FIELDS, doubtful, genuine.

    A report is that of no real engine, so that it is not reused for an equal request, unless it is to be genuine:
    one of this version, with a warning of the code that may follow the colon.
    """
    command, _, argument = (request["options"]["output"] or "").partition(":")
    match command:
        case "sleep":
            emit_progress({"phase": "moments", "fraction": 0.5, "hessian_vector_products": 3})
            time.sleep(float(argument))
        case "small":
            emit_progress({"phase": "moments", "fraction": 0.5, "one_thread": True})
            time.sleep(float(argument))
        case "tell":
            seconds, _, progress = argument.partition(":")
            emit_progress(json.loads(progress))
            time.sleep(float(seconds))
        case "terms":
            told = {name: request.get(name) for name in ("needs", "gate")}
            return _report(request, warnings=[ReportWarning(code="terms", message=json.dumps(told))])
        case "fail":
            raise ModelError(
                "node 3 'Foo': no such operator", code="unsupported_operator", advice="Export again.", node=3
            )
        case "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "allocate":
            bytearray(int(argument))
        case "lose" if request["options"]["device"] != "cpu":
            raise ResourceError("the device failed: CUDA error", code="device_failed", advice="Try again.")
        case "garbage":
            return "{}"
        case "forge":
            return json.dumps({**json.loads(_report(request)), **json.loads(argument)})
        case "doubtful":
            return _report(request, checks=[Check(name="parity", passed=False, value=0.5, tolerance=1e-3)])
        case "genuine":
            warnings = [ReportWarning(code=argument, message="Made up.")] if argument else []
            return _report(request, version=wsb_engine.__version__, warnings=warnings)
    return _report(request)


def _report(
    request: dict[str, Any],
    *,
    version: str = "0",
    warnings: Sequence[ReportWarning] = (),
    checks: Sequence[Check] = (),
) -> str:
    data = (Path("model_data", name) for name in request["model_data"])
    size = sum(len(path.read_bytes()) for path in (Path("model"), *data))
    return Report(
        engine=Engine(version=version, torch="0", device=request["options"]["device"], dtype="float64", seed=0),
        model=Model(
            format="onnx",
            sha256=None,
            architecture="mlp",
            parameters=Parameters(count=size, tensors=[], tied=[]),
            activations=["tanh"],
            smooth=True,
            nonsmooth_operators=[],
            head="none",
            parity=None,
        ),
        batch=BatchSummary(sha256=None, samples=1, classes=2),
        loss=Loss(kind="cross_entropy", value=0.5, gradient_norm=0.1, accuracy=1.0),
        moments=None,
        bounds=None,
        enclosure=None,
        spectrum=None,
        layers=None,
        blocks=None,
        orthogonality=None,
        checks=list(checks),
        warnings=list(warnings),
        timings={"total": 0.0},
    ).model_dump_json()
