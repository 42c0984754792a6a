"""Which tensors of a module are its trainable parameters.

A module declares them. Freezing it turns them into constants of the graph; those become parameters again by the slot
that consumes them, with the rules of the ONNX reader, and get names after the operator: ``linear_0.weight``. A constant
of a module that has its parameters was none of them: it is left out by name, and so are those of frozen submodules.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from wsb_engine.errors import ModelError
from wsb_engine.formats.graph.graph import Graph, Node
from wsb_engine.formats.graph.parameters import WEIGHT_SLOTS, find_parameters
from wsb_engine.formats.graph.problems import require_finite
from wsb_engine.formats.graph.provenance import inclusion, listed
from wsb_engine.formats.torchscript.interpreter import Walk
from wsb_engine.formats.torchscript.loading import Script
from wsb_engine.model import Tensors

_NAMES: Mapping[str, str] = {
    "BatchNormalization": "batch_norm",
    "Conv": "conv",
    "ConvTranspose": "conv_transpose",
    "Einsum": "einsum",
    "Gather": "embedding",
    "Gemm": "linear",
    "GroupNormalization": "group_norm",
    "InstanceNormalization": "instance_norm",
    "LayerNormalization": "layer_norm",
    "MatMul": "matmul",
    "PRelu": "prelu",
    "RMSNormalization": "rms_norm",
    "RNN": "recurrent",
}
_SLOTS = ("weight", "weight", "bias")


@dataclass(frozen=True)
class ParameterSet:
    """The parameters of a module."""

    tensors: Mapping[str, Tensor]
    """By name, in the stored dtype."""
    constants: Mapping[str, str]
    """Name of a constant of the graph → the name that it has as a parameter."""
    left_out: Mapping[str, Tensor]
    """Constants of the graph by name that are no parameters, and can be included."""
    frozen: bool
    """True if constants count as parameters."""

    def including(self, names: Iterable[str]) -> ParameterSet:
        """Return the set with some of the constants that are left out."""
        added = {name: self.left_out[name] for name in names}
        require_finite(added)
        rest = {name: tensor for name, tensor in self.left_out.items() if name not in added}
        return replace(self, tensors={**self.tensors, **added}, left_out=rest)


def parameters(script: Script, walk: Walk, graph: Graph) -> ParameterSet:
    """Return the parameters that a module declares, and those that freezing has hidden among its constants.

    Args:
        script: The module.
        walk: A walk through it in which floating constants are not known yet.
        graph: The structure of that walk.

    Raises:
        ModelError: ``model_no_parameters``, ``model_not_finite``.
    """
    declared, literals = script.parameters, walk.literals
    used = any(name in declared for step in walk.steps for name in step.reads)
    hidden = {name: nodes for name, nodes in _consumers(graph).items() if name in literals} if literals else {}
    weights = {name for name, nodes in hidden.items() if any(node.operator in WEIGHT_SLOTS for node in nodes)}
    names = _renamed(hidden, {*declared, *walk.stored}) if weights else {}
    frozen = bool(names) and (script.frozen or not used)
    counted = {names[name]: literals[name] for name in names} if frozen else {}
    doubtful = literals if script.frozen or script.frozen_parts or frozen else weights
    tensors = {**declared, **counted}
    if not tensors:
        raise ModelError(
            "the module has no trainable tensor",
            code="model_no_parameters",
            advice="Save the trained module itself, with its weights.",
        )
    require_finite(tensors)
    left_out = {names.get(name, name): tensor for name, tensor in literals.items() if name in doubtful}
    return ParameterSet(
        tensors, names, {name: tensor for name, tensor in left_out.items() if name not in counted}, frozen
    )


def doubts(script: Script, found: ParameterSet, left_out: Tensors) -> Iterator[tuple[str, str]]:
    """Yield code and message of warnings about constants that count, and about those that don't.

    Args:
        script: The module.
        found: Its parameters.
        left_out: The constants that the logits depend on and that are not among them.
    """
    part = "the module" if script.frozen else "a submodule"
    if found.frozen:
        why = f"{part} was frozen, which turns parameters, and what was computed from them alone, into constants"
        if not (script.frozen or script.frozen_parts):
            why = "forward uses no parameter that the module declares, and constants of its code count instead,"
        yield (
            "derived_parameters",
            f"{why} without a record: H is the Hessian over these constants, which are the module's parameters only if "
            "it computes nothing from parameters alone; save the module without torch.jit.freeze to be sure",
        )
    if left_out:
        shown = listed(left_out, lambda name: f"{name} {list(left_out[name].shape)}")
        text = f"constants of the module's code are used as weights, and are no parameters that it declares: {shown}"
        if script.frozen or script.frozen_parts:
            text = (
                f"{part} was frozen, which turns parameters into constants: {shown} don't count as parameters; save "
                "the module without torch.jit.freeze to have all of them"
            )
        yield "left_out_parameters", text + inclusion(left_out)


def _consumers(graph: Graph) -> Mapping[str, tuple[Node, ...]]:
    try:
        return find_parameters(graph).consumers
    except ModelError as error:
        if error.code == "model_no_parameters":
            return {}
        raise


def _renamed(hidden: Mapping[str, tuple[Node, ...]], taken: set[str]) -> dict[str, str]:
    """Names after the first operator that consumes each, in the order of the graph and numbered by kind."""
    consumers = {node.index: node for nodes in hidden.values() for node in nodes}
    layers: dict[int, str] = {}
    counts: Counter[str] = Counter()
    for index, node in sorted(consumers.items()):
        kind = _NAMES.get(node.operator, node.operator.lower())
        layers[index] = f"{kind}_{counts[kind]}"
        counts[kind] += 1
    names: dict[str, str] = {}
    places = [(nodes[0], _position(nodes[0], old), old) for old, nodes in hidden.items()]
    for node, position, old in sorted(places, key=lambda place: (place[0].index, place[1])):
        slot = _SLOTS[min(position, 2)] if node.operator in WEIGHT_SLOTS else "operand"
        wanted = f"{layers[node.index]}.{slot}"
        unique, count = wanted, 1
        while unique in taken:
            count += 1
            unique = f"{wanted}_{count}"
        taken.add(unique)
        names[old] = unique
    return names


def _position(node: Node, name: str) -> int:
    """Where a node consumes a constant; one that it consumes through a view is a weight."""
    return node.inputs.index(name) if name in node.inputs else 1
