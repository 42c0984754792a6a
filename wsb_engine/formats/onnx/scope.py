"""Names while a graph is being built: who defines what, and what a name in the file stands for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import onnx
import torch
from torch import Tensor

from wsb_engine.formats.graph import problems
from wsb_engine.formats.graph.graph import Strings
from wsb_engine.formats.graph.limits import LIMITS
from wsb_engine.formats.graph.problems import limit
from wsb_engine.formats.graph.tensors import External, element_count, to_torch

_AP = onnx.AttributeProto
Attributes = Mapping[str, onnx.AttributeProto]


def checked(name: str) -> str:
    """Return a name after checking its length."""
    limit("bytes in a name", len(name.encode()), LIMITS.name_bytes)
    return name


def text(value: bytes, where: str) -> str:
    """Return a string attribute or element."""
    limit(f"bytes in a string of {where}", len(value), LIMITS.string_bytes)
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise problems.invalid(f"{where} holds a string that is not UTF-8") from error


@dataclass
class Scope:
    """Names visible in the body of a graph, a subgraph or a function."""

    prefix: str
    """Prefix of the unique names that are made here."""
    outer: Scope | None
    versions: Mapping[str, int]
    """Domain → opset version."""
    taken: set[str]
    """All unique names of the model; shared by its scopes."""
    external: External
    """Finds the elements of tensors that are in other files."""
    depth: int = 0
    index: int | None = None
    """Position of the outermost node that this scope belongs to."""
    attributes: Attributes = field(default_factory=dict)
    """What attribute references in a function's body refer to."""
    names: dict[str, str] = field(default_factory=dict)
    """Name in the file → unique name."""
    constants: dict[str, Tensor] = field(default_factory=dict)
    strings: dict[str, Strings] = field(default_factory=dict)

    def inner(self, prefix: str, index: int) -> Scope:
        """Return the scope of a subgraph, which sees all that this one sees."""
        return self._nested(prefix, outer=self, index=index)

    def body(self, prefix: str, index: int, versions: Mapping[str, int], attributes: Attributes) -> Scope:
        """Return the scope of a function's body, which sees its inputs only."""
        return self._nested(prefix, outer=None, index=index, versions=versions, attributes=attributes)

    def _nested(self, prefix: str, **changes: Any) -> Scope:
        limit("levels of nested graphs and functions", self.depth + 1, LIMITS.nesting)
        return replace(self, prefix=prefix, depth=self.depth + 1, names={}, constants={}, strings={}, **changes)

    def find(self, name: str) -> str | None:
        """Return the unique name of a visible value."""
        if name in self.names or self.outer is None:
            return self.names.get(name)
        return self.outer.find(name)

    def define(self, name: str, where: str) -> str:
        """Define a name and return its unique form.

        Raises:
            ModelError: ``model_invalid`` if it is empty or known already.
        """
        if not name:
            raise problems.invalid(f"{where} has no name")
        if self.find(name) is not None:
            raise problems.invalid(f"{where} defines {name!r}, which is defined already", name=name)
        unique = self.prefix + name
        while unique in self.taken:
            unique += "'"
        self.taken.add(unique)
        self.names[name] = unique
        return unique

    def resolve(self, name: str, where: str) -> str:
        """Return the unique name of a value that must be known.

        Raises:
            ModelError: ``model_invalid``.
        """
        found = self.find(name)
        if found is None:
            raise problems.invalid(
                f"{where} uses {name!r}, which nothing defines before it (the graph has a cycle or is not sorted)",
                name=name,
            )
        return found

    def add_tensor(self, name: str, proto: onnx.TensorProto) -> None:
        """Add a constant from a tensor of the file."""
        where = f"tensor {name!r}"
        unique = self.define(name, where)
        if proto.data_type == onnx.TensorProto.STRING:
            count = element_count(tuple(proto.dims), where)
            if count != len(proto.string_data):
                raise problems.invalid(f"{where} declares {count} strings but holds {len(proto.string_data)}")
            self.strings[unique] = tuple(text(value, where) for value in proto.string_data)
        else:
            self.constants[unique] = to_torch(proto, where, self.external)

    def add_constant_node(self, name: str, attribute: onnx.AttributeProto, where: str) -> None:
        """What a Constant node makes of its one attribute."""
        kind = attribute.name
        if kind == "value" and attribute.type == _AP.TENSOR:
            self.add_tensor(name, attribute.t)
        elif kind == "value_string":
            self.strings[self.define(name, where)] = (text(attribute.s, where),)
        elif kind == "value_strings":
            self.strings[self.define(name, where)] = tuple(text(value, where) for value in attribute.strings)
        elif kind in ("value_float", "value_floats"):
            floats = attribute.f if kind == "value_float" else list(attribute.floats)
            self.constants[self.define(name, where)] = torch.tensor(floats, dtype=torch.float32)
        elif kind in ("value_int", "value_ints"):
            ints = attribute.i if kind == "value_int" else list(attribute.ints)
            self.constants[self.define(name, where)] = torch.tensor(ints, dtype=torch.int64)
        else:
            raise problems.invalid(f"{where} has attribute {kind!r}, which is not supported")
