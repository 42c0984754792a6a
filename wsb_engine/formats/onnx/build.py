"""ModelProto → Graph: names resolved, local functions inlined, structure checked, limits kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx

from wsb_engine.errors import ModelError
from wsb_engine.formats.graph import problems
from wsb_engine.formats.graph.graph import Graph, Node
from wsb_engine.formats.graph.limits import LIMITS
from wsb_engine.formats.graph.problems import limit
from wsb_engine.formats.graph.tensors import External, dtype_of, element_count, to_torch
from wsb_engine.formats.onnx.proto import canonical_domain, imported_opsets, opsets
from wsb_engine.formats.onnx.scope import Scope, checked, text
from wsb_engine.formats.onnx.signature import check_signature
from wsb_engine.model import Input

_AP = onnx.AttributeProto


def build(model: onnx.ModelProto, external: External) -> Graph:
    """Return the model's graph.

    Args:
        model: The model.
        external: Finds the elements of tensors that are in other files.

    Raises:
        ModelError: ``model_invalid``, ``model_too_complex``, ``unsupported_opset``, ``unsupported_dtype``, ….
    """
    limit("functions", len(model.functions), LIMITS.functions)
    functions = {(canonical_domain(each.domain), each.name, each.overload): each for each in model.functions}
    scope = Scope(prefix="", outer=None, versions=opsets(model), taken=set(), external=external)
    return _Builder(functions).graph(model.graph, scope)


@dataclass
class _Builder:
    functions: Mapping[tuple[str, str, str], onnx.FunctionProto]
    nodes: int = 0
    bodies: int = 0

    def graph(self, proto: onnx.GraphProto, scope: Scope) -> Graph:
        limit("initialisers", len(proto.initializer), LIMITS.initialisers)
        if proto.sparse_initializer:
            raise ModelError(
                "the model stores a sparse tensor",
                code="unsupported_sparse_tensor",
                advice="Export with dense tensors.",
            )
        for tensor in proto.initializer:
            scope.add_tensor(checked(tensor.name), tensor)
        inputs = []
        for value in proto.input:
            if value.name not in scope.names:  # IR version 3 lists initialisers among the inputs
                name = scope.define(checked(value.name), f"input {value.name!r}")
                # What a subgraph is given may be of any type: whether its operator is supported is another question.
                inputs.append(_input(value, name) if scope.outer is None else Input(name=name, shape=None, dtype=None))
        nodes = tuple(self._nodes(proto.node, scope))
        outputs = tuple(scope.resolve(value.name, "the graph's outputs") for value in proto.output)
        if not outputs:
            raise problems.invalid("the graph has no outputs")
        return Graph(
            nodes=nodes, inputs=tuple(inputs), outputs=outputs, constants=scope.constants, strings=scope.strings
        )

    def _nodes(self, protos: Sequence[onnx.NodeProto], scope: Scope) -> Iterator[Node]:
        for position, proto in enumerate(protos):
            self.nodes += 1
            limit("nodes", self.nodes, LIMITS.nodes)
            yield from self._node(proto, position if scope.index is None else scope.index, scope)

    def _node(self, proto: onnx.NodeProto, index: int, scope: Scope) -> Iterable[Node]:
        domain = canonical_domain(proto.domain)
        where = f"node {index} '{proto.op_type[:64]}'"
        for name in (proto.name, proto.op_type, domain, *proto.input, *proto.output):
            checked(name)
        if domain not in scope.versions:
            raise problems.invalid(f"{where}: the model imports no opset of domain {domain!r}")
        inputs = tuple(scope.resolve(name, where) if name else "" for name in proto.input)
        attributes = _own_attributes(proto, where, scope)
        function = self.functions.get((domain, proto.op_type, proto.overload))
        if function is not None:
            return self._call(function, proto, index, inputs, attributes, scope)
        check_signature(proto, attributes, domain, scope.versions[domain], where)
        if domain == "" and proto.op_type == "Constant":
            if len(attributes) != 1 or len(proto.output) != 1:
                raise problems.invalid(f"{where} must have one attribute and one output")
            scope.add_constant_node(proto.output[0], next(iter(attributes.values())), where)
            return ()
        values = {name: self._value(each, where, index, scope) for name, each in attributes.items()}
        outputs = tuple(scope.define(name, where) if name else "" for name in proto.output)
        if not any(outputs):
            raise problems.invalid(f"{where} has no outputs")
        return (
            Node(
                operator=proto.op_type,
                domain=domain,
                version=scope.versions[domain],
                name=proto.name,
                index=index,
                inputs=inputs,
                outputs=outputs,
                attributes=values,
            ),
        )

    def _call(
        self,
        function: onnx.FunctionProto,
        proto: onnx.NodeProto,
        index: int,
        inputs: tuple[str, ...],
        attributes: Mapping[str, onnx.AttributeProto],
        scope: Scope,
    ) -> Iterable[Node]:
        """Return the function's body in place of the call."""
        where = f"node {index}, function {function.name[:64]!r}"
        if len(inputs) > len(function.input) or len(proto.output) > len(function.output):
            raise problems.invalid(f"{where} is called with too many inputs or outputs")
        defaults = {each.name: each for each in function.attribute_proto}
        self.bodies += 1
        versions = {**scope.versions, **imported_opsets(function.opset_import)}
        body = scope.body(f"{self.bodies}/", index, versions, {**defaults, **attributes})
        for name, given in zip(function.input, (*inputs, *[""] * len(function.input)), strict=False):
            body.names[checked(name)] = given
        yield from self._nodes(function.node, body)
        scope.constants.update(body.constants)
        scope.strings.update(body.strings)
        for name, own in zip(proto.output, function.output, strict=False):
            if name:
                yield Node(
                    operator="Identity",
                    version=scope.versions.get("", 1),
                    name=proto.name,
                    index=index,
                    inputs=(body.resolve(own, where),),
                    outputs=(scope.define(name, where),),
                )

    def _value(self, proto: onnx.AttributeProto, where: str, index: int, scope: Scope) -> Any:
        """Return the attribute as a plain value."""
        kind = proto.type
        place = f"{where}, attribute {proto.name!r}"
        if kind == _AP.GRAPH:
            self.bodies += 1
            return self.graph(proto.g, scope.inner(f"{self.bodies}/", index))
        if kind not in _VALUES:
            raise problems.invalid(f"{place} has a type that is not supported")
        return _VALUES[kind](proto, place, scope.external)


_VALUES: Mapping[int, Callable[[onnx.AttributeProto, str, External], Any]] = {
    _AP.FLOAT: lambda proto, place, external: proto.f,
    _AP.FLOATS: lambda proto, place, external: tuple(proto.floats),
    _AP.INT: lambda proto, place, external: proto.i,
    _AP.INTS: lambda proto, place, external: tuple(proto.ints),
    _AP.STRING: lambda proto, place, external: text(proto.s, place),
    _AP.STRINGS: lambda proto, place, external: tuple(text(value, place) for value in proto.strings),
    _AP.TENSOR: lambda proto, place, external: to_torch(proto.t, place, external),
    _AP.TENSORS: lambda proto, place, external: tuple(to_torch(tensor, place, external) for tensor in proto.tensors),
}
"""Type of an attribute → its plain value; subgraphs are built."""


def _own_attributes(proto: onnx.NodeProto, where: str, scope: Scope) -> dict[str, onnx.AttributeProto]:
    """Return a node's attributes, with references to its function's attributes replaced by what they refer to."""
    limit(f"attributes of {where}", len(proto.attribute), LIMITS.attributes)
    found: dict[str, onnx.AttributeProto] = {}
    for attribute in proto.attribute:
        if attribute.name in found:
            raise problems.invalid(f"{where} has attribute {attribute.name!r} twice")
        if not attribute.ref_attr_name:
            found[checked(attribute.name)] = attribute
        elif attribute.ref_attr_name in scope.attributes:
            referred = onnx.AttributeProto()
            referred.CopyFrom(scope.attributes[attribute.ref_attr_name])
            referred.name = checked(attribute.name)
            found[referred.name] = referred
    return found


def _input(value: onnx.ValueInfoProto, name: str) -> Input:
    where = f"input {name!r}"
    if not value.type.HasField("tensor_type"):
        raise ModelError(
            f"{where} is not a tensor",
            code="unsupported_input",
            advice="Export a model whose inputs are plain tensors.",
            input=name,
        )
    tensor_type = value.type.tensor_type
    dtype = dtype_of(tensor_type.elem_type, where)
    if not tensor_type.HasField("shape"):
        return Input(name=name, shape=None, dtype=dtype)
    # A declared size of 0 or −1 is how some exporters write a free dimension.
    sizes = tuple(size.dim_value if size.dim_value > 0 else None for size in tensor_type.shape.dim)
    element_count(tuple(size or 1 for size in sizes), where)
    return Input(name=name, shape=sizes, dtype=dtype)
