"""Stands in for the engine where the plumbing around it is tested; obeys ``options.output``."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

from wsb_engine.errors import ModelError
from wsb_engine.report import BatchSummary, Engine, Loss, Model, Parameters, Report


def run(request: dict[str, Any], emit_progress: Callable[[dict[str, Any]], None]) -> str:
    """Does what the command in ``output`` says: nothing, sleep:SECONDS, fail, crash or garbage."""
    command, _, argument = (request["options"]["output"] or "").partition(":")
    match command:
        case "sleep":
            emit_progress({"phase": "moments", "fraction": 0.5, "hessian_vector_products": 3})
            time.sleep(float(argument))
        case "fail":
            raise ModelError(
                "node 3 'Foo': no such operator", code="unsupported_operator", advice="Export again.", node=3
            )
        case "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "garbage":
            return "{}"
    return _report(request)


def _report(request: dict[str, Any]) -> str:
    with open("model", "rb") as file:
        size = len(file.read())
    return Report(
        engine=Engine(version="0", torch="0", device=request["options"]["device"], dtype="float64", seed=0),
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
        checks=[],
        warnings=[],
        timings={"total": 0.0},
    ).model_dump_json()
