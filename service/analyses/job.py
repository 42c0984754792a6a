"""What the sandboxed child runs: both files are parsed here, and nowhere else."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

ENTRY = "service.analyses.job:run"
PROTECTIONS_ENTRY = "service.analyses.job:protections"
PRELOAD = (
    *("numpy", "onnx", "onnxruntime", "torch"),
    "torch._dynamo",  # torch.func imports it at the first transform, which takes a second
    *("wsb_engine.analysis", "wsb_engine.formats.onnx", __name__),
)
"""What the zygote imports, in this order, so that a child starts in milliseconds."""

MODEL_FILE = "model"
BATCH_FILE = "batch"


def run(request: dict[str, Any], emit_progress: Callable[[dict[str, Any]], None]) -> str:
    """The report of ``model`` and ``batch`` in the working directory, as JSON.

    Args:
        request: ``options`` for the engine; ``threads`` and ``sandbox``, which the sandbox adds.
        emit_progress: Takes the engine's progress.

    Raises:
        EngineError: for input that can't be analysed.
    """
    import torch

    from wsb_engine import Options, analyze, load_batch, load_model

    torch.set_num_threads(request["threads"] or len(os.sched_getaffinity(0)))
    classifier = load_model(MODEL_FILE)
    batch = load_batch(BATCH_FILE)
    options = Options.model_validate(request["options"])
    report = analyze(classifier, batch, options, progress=lambda progress: emit_progress(asdict(progress)))
    engine = report.engine.model_copy(update={"sandbox": request["sandbox"]})
    document: str = report.model_copy(update={"engine": engine}).model_dump_json()
    return document


def protections(request: dict[str, Any], _emit_progress: Callable[[dict[str, Any]], None]) -> str:
    """The names of the protections that are active in a child on this host, as a JSON list."""
    return json.dumps(request["sandbox"])
