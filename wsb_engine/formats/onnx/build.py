"""ModelProto → Graph: names resolved, structure checked, limits kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx
import torch
from torch import Tensor

from wsb_engine.classifier import Input
from wsb_engine.errors import ModelError
from wsb_engine.formats.onnx import problems
from wsb_engine.formats.onnx.graph import Graph, Node, Strings
from wsb_engine.formats.onnx.limits import LIMITS
from wsb_engine.formats.onnx.proto import canonical_domain, opsets
from wsb_engine.formats.onnx.tensors import dtype_of, element_count, to_torch

_AP = onnx.AttributeProto


def build(model: onnx.ModelProto) -> Graph:
    """The model's graph.

    Raises:
        ModelError: ``model_invalid``, ``model_too_complex``, ``unsupported_opset``, ``unsupported_dtype``, ….
    """
    _limit("functions", len(model.functions), LIMITS.functions)
    return _Builder(opsets(model)).graph(model.graph, outer=None, depth=0, prefix="")


def _limit(what: str, found: int, limit: int) -> None:
    if found > limit:
        raise problems.too_complex(what, found, limit)


def _checked_name(name: str) -> str:
    _limit("bytes in a name", len(name.encode()), LIMITS.name_bytes)
    return name


@dataclass
class _Builder:
    versions: Mapping[str, int]
    nodes: int = 0
    subgraphs: int = 0

    def graph(self, proto: onnx.GraphProto, *, outer: _Scope | None, depth: int, prefix: str) -> Graph:
        _limit("levels of nested graphs", depth, LIMITS.nesting)
        _limit("initialisers", len(proto.initializer), LIMITS.initialisers)
        if proto.sparse_initializer:
            raise ModelError(
                "the model stores a sparse tensor",
                code="unsupported_sparse_tensor",
                advice="Export with dense tensors.",
            )
        scope = _Scope(prefix=prefix, outer=outer)
        for tensor in proto.initializer:
            scope.add_constant(_checked_name(tensor.name), tensor)
        inputs = []
        for value in proto.input:
            if value.name not in scope.names:  # IR version 3 lists initialisers among the inputs
                inputs.append(_input(value, scope.define(_checked_name(value.name), f"input {value.name!r}")))
        nodes = [node for node in self._nodes(proto.node, scope, depth) if node is not None]
        outputs = tuple(scope.resolve(value.name, "the graph's outputs") for value in proto.output)
        if not outputs:
            raise problems.invalid("the graph has no outputs")
        return Graph(
            nodes=tuple(nodes),
            inputs=tuple(inputs),
            outputs=outputs,
            constants=scope.constants,
            strings=scope.strings,
        )

    def _nodes(self, protos: Sequence[onnx.NodeProto], scope: _Scope, depth: int) -> Iterable[Node | None]:
        for index, proto in enumerate(protos):
            self.nodes += 1
            _limit("nodes", self.nodes, LIMITS.nodes)
            yield self._node(proto, index, scope, depth)

    def _node(self, proto: onnx.NodeProto, index: int, scope: _Scope, depth: int) -> Node | None:
        domain = canonical_domain(proto.domain)
        where = f"node {index} '{proto.op_type[:64]}'"
        for text in (proto.name, proto.op_type, domain, *proto.input, *proto.output):
            _checked_name(text)
        if domain not in self.versions:
            raise problems.invalid(f"{where}: the model imports no opset of domain {domain!r}")
        inputs = tuple(scope.resolve(name, where) if name else "" for name in proto.input)
        if domain == "" and proto.op_type == "Constant":
            _constant(proto, where, scope)
            return None
        attributes = self._attributes(proto, where, scope, depth)
        outputs = tuple(scope.define(name, where) if name else "" for name in proto.output)
        if not any(outputs):
            raise problems.invalid(f"{where} has no outputs")
        return Node(
            operator=proto.op_type,
            domain=domain,
            version=self.versions[domain],
            name=proto.name,
            index=index,
            inputs=inputs,
            outputs=outputs,
            attributes=attributes,
        )

    def _attributes(self, proto: onnx.NodeProto, where: str, scope: _Scope, depth: int) -> dict[str, Any]:
        _limit(f"attributes of {where}", len(proto.attribute), LIMITS.attributes)
        found: dict[str, Any] = {}
        for attribute in proto.attribute:
            if attribute.name in found:
                raise problems.invalid(f"{where} has attribute {attribute.name!r} twice")
            found[_checked_name(attribute.name)] = self._attribute(attribute, where, scope, depth)
        return found

    def _attribute(self, proto: onnx.AttributeProto, where: str, scope: _Scope, depth: int) -> Any:
        kind = proto.type
        place = f"{where}, attribute {proto.name!r}"
        if kind == _AP.GRAPH:
            self.subgraphs += 1
            return self.graph(proto.g, outer=scope, depth=depth + 1, prefix=f"{self.subgraphs}/")
        if kind == _AP.TENSOR:
            return to_torch(proto.t, place)
        if kind == _AP.TENSORS:
            return tuple(to_torch(tensor, place) for tensor in proto.tensors)
        if kind == _AP.STRING:
            return _text(proto.s, place)
        if kind == _AP.STRINGS:
            return tuple(_text(value, place) for value in proto.strings)
        simple: dict[int, Any] = {
            _AP.FLOAT: proto.f,
            _AP.INT: proto.i,
            _AP.FLOATS: tuple(proto.floats),
            _AP.INTS: tuple(proto.ints),
        }
        if kind not in simple:
            raise problems.invalid(f"{place} has a type that is not supported")
        return simple[kind]


@dataclass
class _Scope:
    """Names visible in a graph that is being built."""

    prefix: str
    outer: _Scope | None
    names: dict[str, str] = field(default_factory=dict)
    """Name in the file → unique name."""
    constants: dict[str, Tensor] = field(default_factory=dict)
    strings: dict[str, Strings] = field(default_factory=dict)

    def find(self, name: str) -> str | None:
        """The unique name of a visible value."""
        scope: _Scope | None = self
        while scope is not None:
            if name in scope.names:
                return scope.names[name]
            scope = scope.outer
        return None

    def define(self, name: str, where: str) -> str:
        if not name:
            raise problems.invalid(f"{where} has no name")
        if self.find(name) is not None:
            raise problems.invalid(f"{where} defines {name!r}, which is defined already", name=name)
        self.names[name] = self.prefix + name
        return self.names[name]

    def resolve(self, name: str, where: str) -> str:
        found = self.find(name)
        if found is None:
            raise problems.invalid(
                f"{where} uses {name!r}, which nothing defines before it (the graph has a cycle or is not sorted)",
                name=name,
            )
        return found

    def add_constant(self, name: str, proto: onnx.TensorProto) -> None:
        where = f"tensor {name!r}"
        unique = self.define(name, where)
        if proto.data_type == onnx.TensorProto.STRING:
            count = element_count(tuple(proto.dims), where)
            if count != len(proto.string_data):
                raise problems.invalid(f"{where} declares {count} strings but holds {len(proto.string_data)}")
            self.strings[unique] = tuple(_text(value, where) for value in proto.string_data)
        else:
            self.constants[unique] = to_torch(proto, where)


def _constant(proto: onnx.NodeProto, where: str, scope: _Scope) -> None:
    """Adds what a Constant node makes; the operator has one attribute out of several."""
    if len(proto.attribute) != 1 or len(proto.output) != 1:
        raise problems.invalid(f"{where} must have one attribute and one output")
    attribute, name = proto.attribute[0], proto.output[0]
    if attribute.name == "value" and attribute.type == _AP.TENSOR:
        scope.add_constant(name, attribute.t)
    elif attribute.name == "value_string":
        scope.strings[scope.define(name, where)] = (_text(attribute.s, where),)
    elif attribute.name == "value_strings":
        scope.strings[scope.define(name, where)] = tuple(_text(value, where) for value in attribute.strings)
    elif attribute.name in ("value_float", "value_floats"):
        floats = attribute.f if attribute.name == "value_float" else list(attribute.floats)
        scope.constants[scope.define(name, where)] = torch.tensor(floats, dtype=torch.float32)
    elif attribute.name in ("value_int", "value_ints"):
        ints = attribute.i if attribute.name == "value_int" else list(attribute.ints)
        scope.constants[scope.define(name, where)] = torch.tensor(ints, dtype=torch.int64)
    else:
        raise problems.invalid(f"{where} has attribute {attribute.name!r}, which is not supported")


def _text(value: bytes, where: str) -> str:
    _limit(f"bytes in a string of {where}", len(value), LIMITS.string_bytes)
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise problems.invalid(f"{where} holds a string that is not UTF-8") from error


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
    sizes = [size.dim_value if size.HasField("dim_value") else None for size in tensor_type.shape.dim]
    element_count(tuple(1 if size is None else size for size in sizes), where)
    # A declared size of 0 is how some exporters write a free dimension.
    return Input(name=name, shape=tuple(size or None for size in sizes), dtype=dtype)
