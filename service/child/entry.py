"""Entry functions of the sandboxed child; only here are both files parsed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsb_engine.progress import Progress

ENTRY = "service.child.entry:run"
PROTECTIONS_ENTRY = "service.child.entry:protections"
PRELOAD = (
    *("numpy", "onnx", "onnxruntime", "torch"),
    *("wsb_engine.analysis.analyze", "wsb_engine.formats.onnx", "wsb_engine.formats.pt2"),
    *("service.child.warm_up", __name__),
)
"""Modules that the zygote imports, in this order, so that a child starts in milliseconds."""

TORCHSCRIPT_NEEDS = frozenset({"landlock", "seccomp"})
"""Protections of files and the network: torch loads the archive, which torch does not promise to be safe."""

MODEL_FILE = "model"
BATCH_FILE = "batch"

_PROGRESS_SECONDS = 0.1
"""Shortest interval between two progress frames within a phase."""


def run(request: dict[str, Any], emit_progress: Callable[[dict[str, Any]], None]) -> str:
    """Analyse ``model`` and ``batch`` in the working directory; return the report as JSON.

    Args:
        request: ``options`` of the engine; ``torchscript``, the setting; ``threads`` and ``sandbox``, which the sandbox
            adds.
        emit_progress: Called with the engine's progress.

    Raises:
        EngineError: if the input can't be analysed.
        MemoryError: if there is not enough memory.
    """
    _gate(request["torchscript"], request["sandbox"])

    import torch

    from service.kit.devices import usable_cores
    from wsb_engine import Options, analyze, load_batch, load_model
    from wsb_engine.memory import ran_out

    torch.set_num_threads(request["threads"] or usable_cores())
    try:
        classifier = load_model(MODEL_FILE)
        batch = load_batch(BATCH_FILE)
        options = Options.model_validate(request["options"])
        report = analyze(classifier, batch, options, progress=_ThrottledProgress(emit_progress))
    except Exception as error:
        if ran_out(error):
            raise MemoryError(str(error)) from error
        raise
    engine = report.engine.model_copy(update={"sandbox": request["sandbox"] or None})
    document: str = report.model_copy(update={"engine": engine}).model_dump_json()
    return document


class _ThrottledProgress:
    """Passes progress on when a phase begins or ends, or some time has passed.

    Each frame wakes the parent: seventy of them took a tenth of the time of a small analysis.
    """

    def __init__(self, emit_progress: Callable[[dict[str, Any]], None]) -> None:
        self._emit = emit_progress
        self._phase, self._next = "", 0.0

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if progress.phase != self._phase or progress.fraction == 1 or now >= self._next:
            self._phase, self._next = progress.phase, now + _PROGRESS_SECONDS
            self._emit(asdict(progress))


def torchscript_accepted(policy: str, active: Collection[str]) -> bool:
    """Whether TorchScript may be loaded.

    Args:
        policy: The setting: auto, always or never.
        active: Names of the protections of the process that would load it.
    """
    return policy == "always" or (policy == "auto" and set(active) >= TORCHSCRIPT_NEEDS)


def _gate(policy: str, active: Collection[str]) -> None:
    """Raise ModelError if the model is a TorchScript archive, and TorchScript may not be loaded."""
    from wsb_engine.errors import ModelError
    from wsb_engine.formats.detect import model_format

    if not torchscript_accepted(policy, active) and model_format(Path(MODEL_FILE)) == "torchscript":
        raise ModelError(
            "the model is a TorchScript archive, and this service does not load TorchScript",
            code="torchscript_refused",
            advice="Export the model to ONNX with torch.onnx.export, or ask the operator to allow TorchScript, which "
            "by default requires a host with Landlock and seccomp: WSB_TORCHSCRIPT.",
        )


def protections(request: dict[str, Any], _emit_progress: Callable[[dict[str, Any]], None]) -> str:
    """Return the names of the protections that are active in a child on this host, as a JSON list."""
    return json.dumps(request["sandbox"])
