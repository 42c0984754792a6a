"""Entry functions of the sandboxed child; only here are both files parsed."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsb_engine import Batch, Classifier, Options
    from wsb_engine.progress import Progress

ENTRY = "service.child.entry:run"
ESTIMATE_ENTRY = "service.child.entry:estimate"
VERIFY_ENTRY = "service.child.entry:verify"
PROTECTIONS_ENTRY = "service.child.entry:protections"
START_ENTRY = "service.child.device:start"
PRELOAD = (
    *("numpy", "onnx", "onnxruntime", "torch"),
    *("wsb_engine.analysis.analyze", "wsb_engine.formats.onnx", "wsb_engine.formats.pt2"),
    *("service.child.device", "service.child.warm_up", "service.policies", __name__),
)
"""Modules that the zygote of a worker imports, in this order, so that a child starts in milliseconds."""

PRELOAD_ONCE = (*PRELOAD[:6], "service.policies", __name__)
"""Modules that a zygote of one job imports; the child imports torch's compiler, and other readers, if it needs them."""

TORCHSCRIPT_NEEDS = frozenset({"landlock", "seccomp"})
"""Protections of files and the network: torch loads the archive, which torch does not promise to be safe."""

DATA_FILES_ENTRY = "service.child.entry:data_files"
MODEL_FILE = "model"
BATCH_FILE = "batch"
STATE_FILE = "optimizer_state"
DATA_FOLDER = "model_data"
"""Folder of the model's data files (external data), under their names."""

_PROGRESS_SECONDS = 0.1
"""Shortest interval between two progress frames within a phase."""

_NAMED = 10
"""Data files that an error names."""


def run(request: dict[str, Any], emit_progress: Callable[[dict[str, Any]], None]) -> str:
    """Analyse a model on a batch; return the report as JSON.

    Args:
        request: ``options`` of the engine; ``torchscript`` and ``max_model_bytes``, settings; ``threads``, ``sandbox``
            and ``memory_bytes``, which the sandbox adds. ``model`` and ``batch``: paths of the files; by default those
            of their names in the working directory. ``model_data``: names of the data files that were sent with the
            model and are in ``DATA_FOLDER``; without it, data files are where the model is. ``optimizer_state``: path
            of the state of an optimizer, if there is one. ``needs``: paths of the report that must not be left out;
            ``gate``: what an enclosure has to decide. Both come from a policy, if there is one. ``gpus``: names of the
            GPUs of the worker.
        emit_progress: Called with the engine's progress.

    Raises:
        EngineError: if the input can't be analysed.
        MemoryError: if there is not enough memory.
    """
    from service.policies import Gate
    from wsb_engine import analyze

    gate = Gate.model_validate(request["gate"]) if request.get("gate") is not None else None
    with _ready(request) as (classifier, batch, options):
        report = analyze(
            classifier,
            batch,
            options,
            progress=_ThrottledProgress(emit_progress),
            needs=request.get("needs", ()),
            decided=None if gate is None else gate.decided,
            optimizer_state=request.get("optimizer_state"),
        )
    engine = report.engine.model_copy(update={"sandbox": request["sandbox"] or None})
    document: str = report.model_copy(update={"engine": engine}).model_dump_json()
    return document


def estimate(request: dict[str, Any], _emit_progress: Callable[[dict[str, Any]], None]) -> str:
    """Estimate what ``run`` would cost with the same request; return the estimate as JSON.

    Raises:
        EngineError, MemoryError: as ``run``.
    """
    import wsb_engine

    with _ready(request) as (classifier, batch, options):
        document: str = wsb_engine.estimate(classifier, batch, options).model_dump_json()
    return document


def verify(request: dict[str, Any], emit_progress: Callable[[dict[str, Any]], None]) -> str:
    """Verify a report against a model and a batch; return the findings as JSON.

    Args:
        request: As for ``run``, with ``report``: the report as JSON, in place of ``needs`` and ``gate``.
        emit_progress: Called with the engine's progress.

    Raises:
        EngineError, MemoryError: as ``run``.
    """
    import wsb_engine

    report = wsb_engine.Report.model_validate_json(request["report"])
    with _ready(request) as (classifier, batch, _):
        found = wsb_engine.verify(
            report,
            classifier,
            batch,
            progress=_ThrottledProgress(emit_progress),
            optimizer_state=request.get("optimizer_state"),
        )
    document: str = found.model_dump_json()
    return document


@contextmanager
def _ready(request: dict[str, Any]) -> Iterator[tuple[Classifier, Batch, Options]]:
    """Read both files and the options; errors of libraries that mean out of memory become one."""
    model, sent = request.get("model", MODEL_FILE), request.get("model_data")
    _gate(request["torchscript"], request["sandbox"], model)

    import torch

    from service.kit.devices import usable_cores
    from wsb_engine import load_batch, load_model
    from wsb_engine.formats.load import external_files
    from wsb_engine.memory import ran_out

    torch.set_num_threads(request["threads"] or usable_cores())
    try:
        where: dict[str, Any] = {"external_data": None if sent is None else DATA_FOLDER}
        where["max_bytes"] = request["max_model_bytes"]
        if sent:
            _refuse_unused(sent, external_files(model, **where))
        classifier = load_model(model, **where)
        batch = load_batch(request.get("batch", BATCH_FILE))
        yield classifier, batch, _options(request)
    except Exception as error:
        if ran_out(error):
            raise MemoryError(str(error)) from error
        raise


def _options(request: dict[str, Any]) -> Options:
    """Return the options with a memory limit that the limits of this process can hold."""
    from wsb_engine.analysis.inputs import device
    from wsb_engine.memory import working_memory
    from wsb_engine.options import Options

    _require_present(request.get("gpus", ()))
    options, memory = Options.model_validate(request["options"]), request.get("memory_bytes")
    if memory is None or device(options).type != "cpu":
        return options
    limit = working_memory(memory) if options.memory_limit is None else min(options.memory_limit, memory)
    return options.model_copy(update={"memory_limit": limit})


def _require_present(gpus: Collection[str]) -> None:
    """Raise ResourceError if the driver has lost a GPU of the worker; ``auto`` would go on without."""
    from wsb_engine import devices
    from wsb_engine.errors import ResourceError

    count = devices.count() if gpus else 0
    lost = [name for name in gpus if int(name.partition(":")[2]) >= count]
    if lost:
        raise ResourceError(
            f"{', '.join(lost)} can't be found any more: the driver offers {count} GPUs",
            code="device_failed",
            advice="Look into the driver's log (dmesg).",
        )


def data_files(request: dict[str, Any], _emit_progress: Callable[[dict[str, Any]], None]) -> str:
    """Return the names of the data files that the model at the path ``model`` refers to, as a JSON list.

    Raises:
        EngineError: if the model can't be read.
    """
    from wsb_engine.formats.load import external_names

    return json.dumps(external_names(request["model"], max_bytes=request["max_model_bytes"]))


def _refuse_unused(sent: Collection[str], used: Collection[str]) -> None:
    """Raise ModelError if data files were sent that the model does not refer to."""
    from wsb_engine.errors import ModelError

    unused = sorted(set(sent) - set(used))
    if unused:
        known = ", ".join(repr(name) for name in list(used)[:_NAMED]) + (", …" if len(used) > _NAMED else "")
        raise ModelError(
            f"the model does not refer to the data file {unused[0]!r} that was sent with it"
            + (f", nor to {len(unused) - 1} others" if len(unused) > 1 else ""),
            code="external_data_unused",
            advice="Leave out what the model does not need. "
            + (f"It refers to {known}." if used else "It keeps all its data in its own file."),
            unused=unused,
        )


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
            fields = ((each.name, getattr(progress, each.name)) for each in dataclasses.fields(progress))
            self._emit({name: getattr(value, "model_dump", lambda v=value: v)() for name, value in fields})


def torchscript_accepted(policy: str, active: Collection[str]) -> bool:
    """Whether TorchScript may be loaded.

    Args:
        policy: The setting: auto, always or never.
        active: Names of the protections of the process that would load it.
    """
    return policy == "always" or (policy == "auto" and set(active) >= TORCHSCRIPT_NEEDS)


def _gate(policy: str, active: Collection[str], model: str) -> None:
    """Raise ModelError if the model is a TorchScript archive, and TorchScript may not be loaded."""
    from wsb_engine.errors import ModelError
    from wsb_engine.formats.commands import TO_ONNX
    from wsb_engine.formats.detect import model_format

    if not torchscript_accepted(policy, active) and model_format(Path(model)) == "torchscript":
        raise ModelError(
            "the model is a TorchScript archive, and this service does not load TorchScript",
            code="torchscript_refused",
            advice=f"{TO_ONNX} Or ask the operator to allow TorchScript, which by default requires a host with "
            "Landlock and seccomp: WSB_TORCHSCRIPT.",
        )


def protections(request: dict[str, Any], _emit_progress: Callable[[dict[str, Any]], None]) -> str:
    """Return the names of the protections that are active in a child on this host, as a JSON list.

    Args:
        request: ``gpus``: names of GPUs, which are tried; ``sandbox``, which the sandbox adds.

    Raises:
        ResourceError: ``device_failed`` if a GPU does not work inside the sandbox.
    """
    if request.get("gpus"):
        from service.child.device import require_working

        require_working(request["gpus"])
    return json.dumps(request["sandbox"])
