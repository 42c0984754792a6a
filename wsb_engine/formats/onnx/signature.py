"""A node against its operator's signature: how many inputs and outputs, which attributes of which type."""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from wsb_engine.formats.graph import problems


def _number(kind: object) -> int:
    """AttributeProto's number of an attribute type, whose name the schema's own enumeration shares."""
    return int(onnx.AttributeProto.AttributeType.Value(str(kind).rpartition(".")[2]))


def check_signature(
    node: onnx.NodeProto, attributes: Mapping[str, onnx.AttributeProto], domain: str, version: int, where: str
) -> None:
    """Check a node against ONNX's schema of its operator; an operator without one passes.

    Args:
        node: The node.
        attributes: Its attributes by name, references resolved.
        domain: Canonical domain.
        version: Opset version of the domain.
        where: How messages name the node.

    Raises:
        ModelError: ``model_invalid``.
    """
    try:
        schema = onnx.defs.get_schema(node.op_type, version, domain)
    except onnx.defs.SchemaError:
        return
    lacking = any(
        not name and each.option != onnx.defs.OpSchema.FormalParameterOption.Optional
        for name, each in zip(node.input, schema.inputs, strict=False)
    )
    if lacking or not schema.min_input <= len(node.input) <= schema.max_input:
        raise problems.invalid(
            f"{where} has inputs {list(node.input)[:8]}; it takes {schema.min_input} to {schema.max_input}"
        )
    if not schema.min_output <= len(node.output) <= schema.max_output:
        raise problems.invalid(
            f"{where} has {len(node.output)} outputs; it gives {schema.min_output} to {schema.max_output}"
        )
    for name, expected in schema.attributes.items():
        if name not in attributes:
            if expected.required:
                raise problems.invalid(f"{where} lacks attribute {name!r}")
        elif attributes[name].type != _number(expected.type):
            raise problems.invalid(f"{where}: attribute {name!r} has the wrong type")
