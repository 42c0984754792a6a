"""The program's JSON graph → the operations that the TorchScript interpreter walks.

Operators are the same; what differs is how a graph says it: arguments by name with defaults left out, parameters and
buffers as inputs of the graph, sizes as symbolic integers, and decomposed operators under other names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from wsb_engine.errors import ModelError
from wsb_engine.formats.graph.limits import LIMITS
from wsb_engine.formats.graph.plan import NESTING
from wsb_engine.formats.pt2 import problems
from wsb_engine.formats.pt2.arguments import LIMITED_TEXT, LISTS, leaves, plain, probability
from wsb_engine.formats.pt2.decomposed import CANONICAL, Fixed
from wsb_engine.formats.pt2.fields import Object, integer, names, take, variant
from wsb_engine.formats.pt2.weights import dtype_of
from wsb_engine.formats.torchscript import queries
from wsb_engine.formats.torchscript.graph import Block, Operation
from wsb_engine.formats.torchscript.loading import Argument
from wsb_engine.formats.torchscript.operators import TABLE
from wsb_engine.formats.torchscript.problems import label, unsupported
from wsb_engine.internals import schema_of

SCHEMA = 8
"""Major version of the export schema."""
ROOT = "%self"
"""Name of the module among the values."""

_ATEN, _HIGHER = "torch.ops.aten.", "torch.ops.higher_order."
_SIZES: Mapping[str, str] = {
    **{f"_operator.{name}": f"aten::{name}" for name in ("add", "eq", "floordiv", "ge", "gt", "le", "lt", "mul", "ne")},
    "_operator.and_": "aten::__and__",
    "_operator.mod": "aten::remainder",
    "_operator.neg": "aten::neg",
    "_operator.or_": "aten::__or__",
    "_operator.sub": "aten::sub",
    "_operator.truediv": "aten::truediv",
    "math.trunc": "aten::Int",
    "torch.sym_float": "aten::Float",
    "torch.sym_int": "aten::Int",
    "torch.sym_max": "aten::max",
    "torch.sym_min": "aten::min",
    "torch.sym_not": "aten::__not__",
}
"""Functions of symbolic sizes → operators."""
_ASSERTIONS = ("_assert", "sym_constrain_range")
"""Beginnings of the names of operators that check what they are given and make nothing."""
_GRAPHS = {"cond": 2, "wrap_with_autocast": 1, "wrap_with_set_grad_enabled": 1}
"""Operators of higher order → number of graphs that they take."""
_IN_TRAINING, _PROBABILITIES = ("train", "training"), ("p", "dropout")
_NORMALISATIONS = ("batch_norm", "batch_norm_legit")
_TRAINING = frozenset({"_batch_norm_with_update", "_batch_norm_with_update_functional"})


@dataclass(frozen=True)
class Program:
    """A translated program."""

    block: Block
    arguments: tuple[Argument, ...]
    parameters: tuple[str, ...]
    """Names of the tensors that the signature declares as parameters, in its order."""


def translate(document: Object, tensors: Mapping[str, Tensor]) -> Program:
    """Translate a program.

    Args:
        document: The program as JSON.
        tensors: The stored tensors by name.

    Raises:
        ModelError: ``pt2_version_unsupported``, ``pt2_training_mode``, ``pt2_refused``, ``model_invalid``,
            ``model_too_complex``, ``unsupported_operator``, ``unsupported_input``, ``unsupported_dtype``.
    """
    schema = take(document, "schema_version", dict)
    if take(schema, "major", int) != SCHEMA:
        raise problems.version(f"{schema['major']}.{schema.get('minor')}"[:40], SCHEMA)
    module = take(document, "graph_module", dict)
    return _Translator(tensors).program(module)


@dataclass
class _Node:
    """A node being translated."""

    target: str
    location: str
    outputs: list[Any]
    """Unions, as the JSON has them."""


@dataclass
class _Translator:
    tensors: Mapping[str, Tensor]
    first: list[Operation] = field(default_factory=list)
    """Constants, which come before everything else."""
    operations: list[Operation] = field(default_factory=list)
    """Those of the block at hand."""
    scope: dict[str, str] = field(default_factory=dict)
    """Name in the graph at hand → name of the value."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Name in the graph at hand that is not computed → the operator whose output it is."""
    values: Object = field(default_factory=dict)
    """Shapes and dtypes of the graph at hand."""
    prefix: str = ""
    """Makes the names of a subgraph's values unique."""
    count: int = 0
    """Operations made so far, those of all blocks together."""
    graphs: int = 0
    """Nested graphs translated so far."""
    unnamed: int = 0
    """Values made so far that have no name in the program."""
    constants: dict[str, str] = field(default_factory=dict)

    def program(self, module: Object) -> Program:
        graph, signature = take(module, "graph", dict), take(module, "signature", dict)
        self.values = take(graph, "tensor_values", dict)
        parameters, arguments, inputs = [], [], []
        for spec in take(signature, "input_specs", list):
            kind, given = variant(spec)
            if kind == "constant_input":
                self._constant_input(given)
            elif kind == "user_input":
                name, argument = self._user_input(take(given, "arg", dict))
                inputs.append(name)
                arguments.append(argument)
            elif kind in ("parameter", "buffer", "tensor_constant"):
                stored = take(given, f"{kind}_name", str)
                self._attribute(take(take(given, "arg", dict), "name", str), stored)
                parameters += [stored] if kind == "parameter" else []
            else:
                raise unsupported(f"input of kind {kind[:LIMITED_TEXT]}", "")
        results = [
            take(given, "arg", dict)
            for kind, given in map(variant, take(signature, "output_specs", list))
            if kind == "user_output"
        ]
        self._nodes(graph, 0)
        outputs = self._structured(module, [self._argument(result) for result in results])
        block = Block(inputs=(ROOT, *inputs), operations=(*self.first, *self.operations), outputs=(outputs,))
        return Program(block, tuple(arguments), tuple(parameters))

    # Inputs and outputs of the program

    def _constant_input(self, given: Object) -> None:
        """Bind an argument that was a number or text when the program was exported; the graph rarely reads it."""
        self.scope[take(given, "name", str)] = self._constant(plain(*variant(take(given, "value", dict))))

    def _user_input(self, argument: Object) -> tuple[str, Argument]:
        kind, given = variant(argument)
        if kind != "as_tensor":
            raise ModelError(
                f"the program has an input of kind {kind[:LIMITED_TEXT]}, not a tensor",
                code="unsupported_input",
                advice="Wrap the module so that forward takes tensors only, and export that.",
            )
        name = take(given, "name", str)
        meta = self._meta(given)
        shape = tuple(
            integer(size) if kind == "as_int" else None for kind, size in map(variant, take(meta, "sizes", list))
        )
        dtype = dtype_of(take(meta, "dtype", int), f"input {name!r}")
        self._define(name)
        return self.scope[name], Argument(name, "Tensor", False, None, shape, dtype)

    def _attribute(self, name: str, stored: str) -> None:
        if stored not in self.tensors:
            raise problems.invalid(f"the archive lacks the tensor {stored[:LIMITED_TEXT]!r}")
        self._emit("prim::GetAttr", (ROOT,), (self._define(name),), attribute=stored)

    def _structured(self, module: Object, results: list[str]) -> str:
        """Return the name of what forward returns: tensors in the containers that the module call's signature tells."""
        calls = take(module, "module_call_graph", list)
        signature = calls[0].get("signature") if calls and isinstance(calls[0], dict) else None
        if not isinstance(signature, dict):
            return results[0] if len(results) == 1 else self._made("prim::TupleConstruct", results)
        try:
            specification = json.loads(take(signature, "out_spec", str))[1]
        except (ValueError, RecursionError, LookupError, TypeError) as error:
            raise problems.invalid("the program does not say how its outputs are structured") from error
        left = iter(results)
        made = self._container(specification, left, 0)
        if made is None or next(left, None) is not None:
            raise problems.invalid("the program's outputs do not fit the structure that it states")
        return made

    def _container(self, specification: Any, left: Iterator[str], depth: int) -> str | None:
        problems.limit("levels of nested containers", depth, NESTING)
        kind = take(specification, "type", object)
        if kind is None:
            return next(left, None)
        items = [self._container(each, left, depth + 1) for each in take(specification, "children_spec", list)]
        found = [each for each in items if each is not None]
        if len(found) < len(items):
            return None
        keys = _keys(specification.get("context"))
        if len(keys) != len(found):
            return self._made("prim::TupleConstruct", found)
        pairs = [name for key, each in zip(keys, found, strict=True) for name in (self._constant(key), each)]
        return self._made("prim::DictConstruct", pairs)

    # Nodes

    def _nodes(self, graph: Object, depth: int) -> None:
        problems.limit("levels of nested graphs", depth, LIMITS.nesting)
        for index, given in enumerate(take(graph, "nodes", list)):
            node = _Node(take(given, "target", str), _location(given, index), take(given, "outputs", list))
            arguments = take(given, "inputs", list)
            if node.target in _SIZES:
                inputs = [self._argument(take(each, "arg", dict)) for each in arguments]
                self._node(_SIZES[node.target], inputs, node)
            elif node.target.startswith(_ATEN):
                self._aten(node, arguments)
            elif node.target.startswith(_HIGHER):
                self._higher(node, [take(each, "arg", dict) for each in arguments], depth)
            else:
                raise unsupported(node.target[:LIMITED_TEXT], node.location)

    def _aten(self, node: _Node, arguments: list[Any]) -> None:
        name, _, overload = node.target.removeprefix(_ATEN).partition(".")
        if name.startswith(_ASSERTIONS):
            return
        form = CANONICAL.get(f"{name}.{overload}", CANONICAL.get(name))
        schema = _schema(name, overload, known=form is not None)
        if schema is None:
            raise unsupported(f"aten::{name[:LIMITED_TEXT]}", node.location)
        given = {take(each, "name", str): take(each, "arg", dict) for each in arguments}
        self._require_inference(name, given, node)
        values = {each.name: self._given(each, given, node) for each in schema.arguments}
        if form is None:
            plain = "" if overload == "default" else overload
            self._node(f"aten::{name}", list(values.values()), node, overload=plain)
            return
        if overload == "no_stats":
            self._require_apart(given, node)
        inputs = [self._constant(each.value) if isinstance(each, Fixed) else values[each] for each in form.arguments]
        self._node(f"aten::{form.name}", inputs, node, overload=form.overload, first=True)

    def _given(self, parameter: Any, given: Mapping[str, Object], node: _Node) -> str:
        if parameter.name in given:
            return self._argument(given[parameter.name])
        if not parameter.has_default_value():
            raise problems.invalid(f"{label(node.target, node.location)} lacks its argument {parameter.name!r}")
        return self._constant(parameter.default_value)

    def _require_inference(self, name: str, given: Mapping[str, Object], node: _Node) -> None:
        """Reject an operator that drops elements or takes statistics from the batch, as in training."""
        flagged = any(given.get(each) == {"as_bool": True} for each in _IN_TRAINING)
        drops = [probability(given[each]) for each in _PROBABILITIES if each in given]
        alone = name.endswith(_NORMALISATIONS) and given.get("running_mean", {"as_none": True}) == {"as_none": True}
        if (flagged and any(drops or [1.0]) and not alone) or name in _TRAINING or probability(given.get("dropout_p")):
            raise problems.training(label(f"aten::{name}", node.location), operator=name, location=node.location)

    def _require_apart(self, given: Mapping[str, Object], node: _Node) -> None:
        """Reject a normalisation by the batch's statistics that is none of single samples, written as one row."""
        sizes = take(self._meta(take(take(given, "input", dict), "as_tensor", dict)), "sizes", list)
        if not sizes or sizes[0] != {"as_int": 1}:
            raise unsupported("a batch normalisation without running statistics", node.location, "mixes the samples")

    def _higher(self, node: _Node, arguments: list[Any], depth: int) -> None:
        """Inline the graph that an operator of higher order is given, or both of a condition's as branches."""
        name = node.target.removeprefix(_HIGHER)
        kinds = [variant(each) for each in arguments]
        graphs = [take(given, "graph", dict) for kind, given in kinds if kind == "as_graph"]
        if name not in _GRAPHS or len(graphs) != _GRAPHS[name]:
            raise unsupported(f"higher_order::{name[:LIMITED_TEXT]}", node.location)
        last = max(index for index, (kind, _) in enumerate(kinds) if kind == "as_graph")
        operands = [each for argument in arguments[last + 1 :] for each in self._each(argument)]
        if name == "cond":
            condition = self._made("aten::Bool", [self._argument(arguments[0])])
            blocks = tuple(self._block(graph, operands, depth) for graph in graphs)
            if any(len(block.outputs) != len(leaves(node.outputs)) for block in blocks):
                raise problems.invalid(f"{label(name, node.location)} has branches of different outputs")
            self._node("prim::If", [condition], node, blocks=blocks)
            return
        results = self._inlined(graphs[0], operands, depth)
        hidden = name == "wrap_with_set_grad_enabled" and arguments[0] == {"as_bool": False}
        made = leaves(node.outputs)
        if len(results) != len(made):
            raise problems.invalid(f"{label(name, node.location)} has {len(made)} outputs of {len(results)}")
        for leaf, result in zip(made, results, strict=True):
            # What is computed without gradients counts as constant, which the interpreter refuses for parameters.
            kind = "aten::detach" if hidden else "prim::unchecked_cast"
            self._emit(kind, [result], (self._define(leaf),), location=node.location)

    def _block(self, graph: Object, operands: list[str], depth: int) -> Block:
        outside, self.operations = self.operations, []
        outputs = self._inlined(graph, operands, depth)
        block = Block(inputs=(), operations=tuple(self.operations), outputs=tuple(outputs))
        self.operations = outside
        return block

    def _inlined(self, graph: Object, operands: list[str], depth: int) -> list[str]:
        """Translate a graph with its inputs bound to operands; return the names of its outputs."""
        inputs = leaves(take(graph, "inputs", list))
        if len(inputs) != len(operands):
            raise problems.invalid(f"a nested graph takes {len(inputs)} operands and is given {len(operands)}")
        outer = (self.scope, self.left_out, self.values, self.prefix)
        self.scope, self.left_out = dict(zip(inputs, operands, strict=True)), {}
        self.values = take(graph, "tensor_values", dict)
        self.graphs += 1
        self.prefix = f"{self.graphs}:"
        self._nodes(graph, depth + 1)
        outputs = [self._argument(each) for each in take(graph, "outputs", list)]
        self.scope, self.left_out, self.values, self.prefix = outer
        return outputs

    # Values

    def _node(
        self, kind: str, inputs: Sequence[str], node: _Node, *, overload: str = "", blocks: tuple[Block, ...] = (),
        first: bool = False,
    ) -> None:  # fmt: skip
        """Add an operation with the outputs of a node, or with the first of them only."""
        outputs, lists = [], []
        for position, union in enumerate(node.outputs):
            variety, _ = variant(union)
            found = leaves([union])
            if first and position:
                self.left_out.update(dict.fromkeys(found, label(node.target, node.location)))
            elif variety in LISTS:
                outputs.append(self._fresh())
                lists.append((outputs[-1], found))
            elif found:
                outputs.append(self._define(found[0]))
            elif variety == "as_none":
                outputs.append(self._fresh())
            else:
                raise unsupported(node.target[:LIMITED_TEXT], node.location, f"has an output of kind {variety[:99]}")
        self._emit(kind, inputs, outputs, overload=overload, blocks=blocks, location=node.location)
        for name, found in lists:
            self._emit("prim::ListUnpack", [name], [self._define(leaf) for leaf in found], location=node.location)

    def _each(self, argument: Object) -> list[str]:
        """Return the values of an argument: those of a list one by one."""
        kind, given = variant(argument)
        if kind in LISTS:
            return [self._value(each) for each in names({"list": given}, "list")]
        return [self._argument(argument)]

    def _argument(self, argument: Object) -> str:
        """Return the name of a value: one of the graph, or a constant."""
        kind, given = variant(argument)
        if kind == "as_tensor":
            return self._value(take(given, "name", str))
        if kind == "as_tensors":
            return self._made("prim::ListConstruct", self._each(argument))
        if kind in ("as_sym_int", "as_sym_float", "as_sym_bool", "as_optional_tensor"):
            return self._symbol(given)
        if kind in ("as_sym_ints", "as_sym_floats", "as_sym_bools", "as_optional_tensors"):
            unions = take(argument, kind, list)
            if all("as_int" in each for each in unions if isinstance(each, dict)):
                return self._constant([integer(take(each, "as_int", int)) for each in unions])
            return self._made("prim::ListConstruct", [self._symbol(each) for each in unions])
        return self._constant(plain(kind, given))

    def _symbol(self, union: Object) -> str:
        kind, given = variant(union)
        return self._value(given) if kind == "as_name" and isinstance(given, str) else self._argument(union)

    def _value(self, name: str) -> str:
        if name in self.left_out:
            raise unsupported(name[:LIMITED_TEXT], "", f"is an output of {self.left_out[name]} that is not supported")
        if name not in self.scope:
            raise problems.invalid(f"the graph reads {name[:LIMITED_TEXT]!r}, which nothing before makes")
        return self.scope[name]

    def _define(self, name: str) -> str:
        if name in self.scope or len(name) > LIMITS.name_bytes:
            raise problems.invalid(f"the graph defines {name[:LIMITED_TEXT]!r} twice, or at too great a length")
        self.scope[name] = f"%{self.prefix}{name}"
        return self.scope[name]

    def _fresh(self) -> str:
        self.unnamed += 1
        return f"% {self.unnamed}"

    def _meta(self, tensor: Object) -> Object:
        return take(self.values, take(tensor, "name", str), dict)

    def _constant(self, value: Any) -> str:
        key = f"{type(value).__name__} {value!r}"
        if key not in self.constants:
            self.constants[key] = f"%constant {len(self.constants)}"
            self.first.append(_operation("prim::Constant", (), (self.constants[key],), constant=value))
            self._count()
        return self.constants[key]

    def _made(self, kind: str, inputs: Sequence[str]) -> str:
        name = self._fresh()
        self._emit(kind, inputs, (name,))
        return name

    def _emit(self, kind: str, inputs: Sequence[str], outputs: Sequence[str], **details: Any) -> None:
        self.operations.append(_operation(kind, inputs, outputs, **details))
        self._count()

    def _count(self) -> None:
        self.count += 1
        problems.limit("operations", self.count, LIMITS.nodes)


def _operation(
    kind: str, inputs: Sequence[str], outputs: Sequence[str], *, overload: str = "", blocks: tuple[Block, ...] = (),
    constant: Any = None, attribute: str = "", location: str = "",
) -> Operation:  # fmt: skip
    return Operation(
        kind=kind, overload=overload, inputs=tuple(inputs), outputs=tuple(outputs), blocks=blocks, constant=constant,
        attribute=attribute, location=location,
    )  # fmt: skip


def _keys(context: Any) -> list[str]:
    """Return the keys that the context of a container states, if it is a dictionary."""
    try:
        parsed = json.loads(context) if isinstance(context, str) else None
    except (ValueError, RecursionError):
        return []
    return [str(key)[:LIMITED_TEXT] for key in parsed] if isinstance(parsed, list) else []


def _schema(name: str, overload: str, *, known: bool) -> Any:
    """Return the schema of an operator that the reader knows, else None."""
    known = known or f"aten::{name}" in queries.TABLE or name in TABLE or name.removesuffix("_") in TABLE
    packet = getattr(torch.ops.aten, name, None) if known else None
    if packet is None or overload not in packet.overloads():
        return None
    return schema_of(getattr(packet, overload))


def _location(node: Any, index: int) -> str:
    """Return how messages find a node: its name, and the module that it comes from."""
    name = node.get("name") if isinstance(node, dict) else None
    metadata = node.get("metadata") if isinstance(node, dict) else None
    stack = metadata.get("nn_module_stack") if isinstance(metadata, dict) else None
    path = stack.rpartition(";")[2].split(",")[1:2] if isinstance(stack, str) else []
    place = f"node {index} {name or ''}".rstrip()
    return (f"{place} in {path[0]}" if path and path[0] else place)[:LIMITED_TEXT]
