"""Bytes → ModelProto, refusing what is malformed."""

from __future__ import annotations

import onnx
from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]

from wsb_engine.errors import ModelError
from wsb_engine.formats.commands import EXPORT_WITH_DATA
from wsb_engine.formats.graph import problems
from wsb_engine.formats.graph.limits import LIMITS

_MINIMUM_OPSET = 7
_DOMAIN_ALIASES = {"ai.onnx": ""}


def parse(data: bytes) -> tuple[onnx.ModelProto, list[onnx.TensorProto]]:
    """Parse an ONNX model; return it with all of its tensors that keep their elements in another file.

    Raises:
        ModelError: ``model_too_large`` or ``model_invalid``.
    """
    if len(data) > LIMITS.file_bytes:
        raise ModelError(
            f"the file has {len(data)} bytes, more than the {LIMITS.file_bytes} that an ONNX file can hold",
            code="model_too_large",
            advice=f"Export it with its weights in a data file: {EXPORT_WITH_DATA}.",
            limit=LIMITS.file_bytes,
        )
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise problems.invalid("the file is malformed, or nested too deeply, for an ONNX model") from error
    if not model.HasField("graph") or not (model.graph.node or model.graph.output):
        raise problems.invalid("the file has no graph; it may be cut short")
    return model, [tensor for tensor in _tensors(model) if tensor.data_location == onnx.TensorProto.EXTERNAL]


def opsets(model: onnx.ModelProto) -> dict[str, int]:
    """Domain → opset version, with the default domain as ``""``.

    Raises:
        ModelError: ``unsupported_opset`` or ``model_invalid``.
    """
    found = imported_opsets(model.opset_import)
    newest = onnx.defs.onnx_opset_version()
    if "" in found and not _MINIMUM_OPSET <= found[""] <= newest:
        raise ModelError(
            f"the model uses opset {found['']}; opsets {_MINIMUM_OPSET} to {newest} are supported",
            code="unsupported_opset",
            advice=f"Export with an opset between {_MINIMUM_OPSET} and {newest}, or use onnx.version_converter.",
            opset=found[""],
        )
    return found


def imported_opsets(imports: object) -> dict[str, int]:
    """Return domain → opset version of any list of OperatorSetIdProto, without checking the versions."""
    return {canonical_domain(entry.domain): int(entry.version) for entry in imports}  # type: ignore[attr-defined]


def canonical_domain(domain: str) -> str:
    """``ai.onnx`` is another name of the default domain."""
    return _DOMAIN_ALIASES.get(domain, domain)


def _tensors(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """Return every tensor of the file, wherever it hides, after checking that all names are text.

    protobuf hands out a string that is not UTF-8 as bytes, which nothing after this expects.
    """
    tensors: list[onnx.TensorProto] = []
    pending: list[Message] = [model]
    while pending:
        current = pending.pop()
        texts: list[str | bytes] = []
        if isinstance(current, onnx.TensorProto):
            tensors.append(current)
            texts.append(current.name)  # of the rest nothing is used as text, and much of it is large
        else:
            for field, value in current.ListFields():
                if field.type == field.TYPE_STRING:
                    texts += [value] if isinstance(value, str | bytes) else value
                elif field.type == field.TYPE_MESSAGE:
                    pending += [value] if isinstance(value, Message) else value
        if not all(isinstance(text, str) for text in texts):
            raise problems.invalid("the file holds a name that is not UTF-8")
    return tensors
