"""Reads what torch.onnx writes about a file's constants.

The exporter that torch.export feeds keeps the signature of the exported program (which tensors are parameters and which
are buffers) as metadata of the graph, and its optimiser keeps the names that a folded constant was computed from. Both
are hints: a file without them, or with false ones, is read by its structure.
"""

from __future__ import annotations

import re
from dataclasses import replace

import onnx

from wsb_engine.formats.graph.provenance import UNKNOWN, Provenance

_SIGNATURE = "pkg.torch.export.ExportedProgram.graph_signature"
_KIND = "pkg.torch.export.graph_signature.InputSpec.kind"
_FOLDED = "pkg.onnxscript.optimizer.folded_from"
_INPUT = re.compile(r"^\w+: (PARAMETER|BUFFER|CONSTANT_TENSOR) target='([^']*)'", re.MULTILINE)
_VIEW = re.compile(
    r"^(alias|arange|clone|contiguous|detach|embedding|expand|flatten|full|gather|index|index_select|permute|repeat|"
    r"reshape|select|slice|squeeze|t|to|_to_copy|transpose|unsqueeze|unsafe_view|val|view|zeros)(_\d+)*$"
)
"""Names of values that hold elements of one that they are computed from; what ``val`` is, its use tells."""
_AUXILIARY = re.compile(r"^(.+?)(?:\.\d+\._|_)(mask|u|v)$")
"""Names that buffers have next to a weight of the same beginning."""
_STACKING = frozenset({"GRU", "LSTM", "RNN"})
"""Operators whose weights and biases are those of several parameters, one after the other."""
_STACKED = re.compile(r"^(cat|concat|split|stack)(_\d+)*$")
_UNNAMED = re.compile(r"^val_\d+$")
_FLOATS = frozenset(
    {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16}
)
_QUOTED = re.compile(r"'([^']+)'")
_LONGEST = 1 << 20
"""Characters of one entry that are read."""


def provenance(model: onnx.ModelProto) -> Provenance:
    """Return what a file says about the constants of its main graph: its record, or else names that torch keeps."""
    signature = _entry(model.graph, _SIGNATURE)
    if signature is None:
        return replace(UNKNOWN, auxiliary=_auxiliary(model)) if model.producer_name == "pytorch" else UNKNOWN
    kinds = {name: kind for kind, name in _INPUT.findall(signature)}
    stored = {tensor.name for tensor in model.graph.initializer}
    stored.update(name for node in model.graph.node if node.op_type == "Constant" for name in node.output)
    stacked = {name for node in model.graph.node if node.op_type in _STACKING for name in node.input[1:4]}
    scales = {tensor.name for tensor in model.graph.initializer if _is_number(tensor)}
    learned: set[str] = set()
    computed: set[str] = set()
    of_shapes: set[str] = set()
    names: dict[str, str] = {}
    derived: dict[str, tuple[str, ...]] = {}
    for value in model.graph.value_info:
        if value.name not in stored:
            continue
        kind, sources = _entry(value, _KIND), _sources(_entry(value, _FOLDED))
        if kind is not None:
            (learned if kind == "PARAMETER" else computed).add(value.name)
        elif sources:
            parameters = tuple(name for name in sources if kinds.get(name) == "PARAMETER")
            steps = {value.name, *sources} - kinds.keys()
            if not parameters:
                computed.add(value.name)
            elif value.name in scales and any(map(_UNNAMED.match, sources)):
                derived[value.name] = parameters
                of_shapes.add(value.name)
            elif len(parameters) == 1 and all(map(_VIEW.match, steps)):
                names[value.name] = parameters[0]
            elif value.name in stacked and all(_VIEW.match(step) or _STACKED.match(step) for step in steps):
                learned.add(value.name)
            else:
                derived[value.name] = parameters
    return Provenance(
        learned=frozenset(learned | names.keys()),
        derived=derived,
        of_shapes=frozenset(of_shapes),
        computed=frozenset(computed),
        names=names,
    )


def _auxiliary(model: onnx.ModelProto) -> frozenset[str]:
    """Return buffers that torch.nn.utils keeps with a weight: a mask, or the two vectors of a spectral norm."""
    sizes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    found: set[str] = set()
    for name, size in sizes.items():
        match = _AUXILIARY.match(name)
        if match is None:
            continue
        beginning, ending = match.groups()
        original = next((sizes[each] for each in (f"{beginning}_orig", f"{beginning}.original") if each in sizes), ())
        other = name[:-1] + {"u": "v", "v": "u"}.get(ending, name[-1])
        if size == original if ending == "mask" else len(size) == len(sizes.get(other, ())) == 1 < len(original):
            found.add(name)
    return frozenset(found)


def _is_number(tensor: onnx.TensorProto) -> bool:
    """Return whether a tensor is a single floating number."""
    return all(size == 1 for size in tensor.dims) and tensor.data_type in _FLOATS


def _entry(proto: onnx.GraphProto | onnx.ValueInfoProto, key: str) -> str | None:
    return next((each.value for each in proto.metadata_props if each.key == key and len(each.value) < _LONGEST), None)


def _sources(text: str | None) -> tuple[str, ...]:
    """Return the names in a list as Python prints it."""
    return tuple(_QUOTED.findall(text)) if text is not None else ()
