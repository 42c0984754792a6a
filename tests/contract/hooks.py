"""What a schema can't say of requests: which bytes are a model, and which values belong together.

schemathesis loads this module by ``SCHEMATHESIS_HOOKS``. Requests that are meant to be valid get real files; those
that are meant to be invalid stay as they are.
"""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
import schemathesis
from safetensors.numpy import save
from schemathesis import Case, HookContext
from schemathesis.core import NOT_SET
from schemathesis.generation import GenerationMode
from schemathesis.transport.serialization import Binary
from support.service import npz_batch, onnx_mlp

IN_FULL = os.environ.get("WSB_TEST_FULL") == "1"
"""Whether requests bring reports and all options: each limit in their schemas is some more requests."""
OPTIONS = ("moments", "relative_gap", "top", "density", "seed", "head")
"""Options of the short form: one of each type. Limits of the others have tests of the engine and of bad requests."""
MOST_SERIES = 3
LARGEST = 512
"""Largest limit on a length that is tried."""
MODELS = [onnx_mlp((4, 3, 3), seed=seed) for seed in range(8)]
DEPENDENT = (
    *("time_limit", "memory_limit", "output", "parameters", "head", "moments", "stop", "basis", "devices"),
    *("loss", "class_weights", "pos_weight", "label_smoothing", "ignore_index"),
)
"""Options whose values can be right for one model, machine or policy and wrong for another."""
POLICY = {"rule": [{"metric": "loss.value", "op": "<=", "limit": 1.0}]}
WEBHOOK = {"url": "http://127.0.0.1:9/", "secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}
STATES = [save({"step": np.array(float(step))}) for step in range(8)]
BATCHES = [npz_batch(samples=4, seed=seed) for seed in range(8)]


@schemathesis.hook
def before_load_schema(context: HookContext, raw_schema: dict[str, Any]) -> None:
    """Limits of reports are far beyond what can be generated: a list of each greatest length takes gigabytes."""
    _without_large_limits(raw_schema)
    if not IN_FULL:
        schemas = raw_schema["components"]["schemas"]
        few = {name: schemas["Options"]["properties"][name] for name in OPTIONS}
        schemas["FewOptions"] = {**schemas["Options"], "properties": few}
        for name in ("AnalysisRequest", "FormRequest"):
            schemas[name]["properties"]["options"] = {"$ref": "#/components/schemas/FewOptions"}
        for name in ("AnalysisRequest", "FormRequest", "ComparisonRequest"):
            _without_reports(schemas[name])


def _without_reports(schema: Any) -> None:
    if isinstance(schema, dict) and "oneOf" in schema:
        schema["oneOf"] = [kind for kind in schema["oneOf"] if kind.get("$ref") != "#/components/schemas/Report"]
    for part in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        _without_reports(part)


def _without_large_limits(schema: Any) -> None:
    if isinstance(schema, dict):
        for name in ("maxItems", "maxLength", "maxProperties"):
            if isinstance(schema.get(name), int) and schema[name] > LARGEST:
                del schema[name]
    for part in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        _without_large_limits(part)


@schemathesis.hook
def before_call(context: HookContext, case: Case, kwargs: dict[str, Any]) -> None:
    if not _is_meant_to_be_valid(case):
        return
    if case.query and case.operation.path == "/v1/analyses":
        # A cursor belongs to an order; this one to the default.
        case.query.pop("sort", None)
        if "after" in case.query:
            case.query["after"] = str(case.query["after"]).partition(":")[0]
    if case.query and "/series/" in case.operation.path and "also" in case.query:
        # How many go together is a setting.
        case.query["also"] = case.query["also"][:MOST_SERIES]
    if case.body is NOT_SET:
        return
    # The same key with another request is refused, as it must be.
    if case.headers:
        case.headers.pop("Idempotency-Key", None)
    pick = len(repr(case.body)) % 8
    is_form = case.media_type == "multipart/form-data" and isinstance(case.body, dict)
    model = ("model.onnx", MODELS[pick], "application/octet-stream")
    if case.operation.path == "/v1/models" and is_form:
        kwargs["files"] = [("model", model), ("model_data", ("model.onnx.data", b"", "application/octet-stream"))]
    elif case.operation.path == "/v1/models":
        case.body = Binary(MODELS[pick])
    elif case.operation.path == "/v1/optimizer_states":
        case.body = Binary(STATES[pick])
    elif case.operation.path == "/v1/batches":
        case.body = Binary(BATCHES[pick])
    elif case.operation.path == "/v1/webhooks":
        case.body = WEBHOOK
    elif case.operation.path == "/v1/comparisons" and isinstance(case.body, dict):
        case.body = {**case.body, "policy": POLICY}
    elif is_form:
        files: dict[str, tuple[str | None, bytes, str]] = {
            "model": model,
            "batch": ("batch.npz", BATCHES[pick], "application/octet-stream"),
        }
        if isinstance(request := case.body.get("request"), dict):
            wanted = _consistent({**request, "model": None, "batch": None})
            files["request"] = (None, json.dumps(wanted).encode(), "application/json")
        kwargs["files"] = files
    elif isinstance(case.body, dict):
        case.body = _consistent(case.body)


def _is_meant_to_be_valid(case: Case) -> bool:
    return case.meta is None or case.meta.generation.mode is GenerationMode.POSITIVE


def _consistent(request: dict[str, Any]) -> dict[str, Any]:
    """Without what depends on more than the schema: paths into reports, other analyses, devices of this machine."""
    request = {name: value for name, value in request.items() if name not in ("policy", "baseline")}
    if isinstance(options := request.get("options"), dict):
        kept = {name: value for name, value in options.items() if name not in DEPENDENT}
        request["options"] = {**kept, "device": "cpu"}
    if "timeout_s" in request:
        request["timeout_s"] = 60
    return request
