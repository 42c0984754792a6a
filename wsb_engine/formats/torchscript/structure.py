"""The steps of a walk in the vocabulary of ONNX, for what the two readers ask of a graph's structure.

Heads, parameters and perceptrons are recognised by the same rules as in ONNX graphs. Only what those rules read is
translated; every other operator stays opaque, with the values that it reads. The translation is read, never run, but
for the elementwise functions between the layers of a perceptron, which are identified by what they compute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from wsb_engine.formats.graph.graph import Graph, Node
from wsb_engine.formats.graph.kernels.elementwise import SURE
from wsb_engine.formats.graph.kernels.recurrent import STEPS
from wsb_engine.formats.graph.plan import Name, Step
from wsb_engine.formats.torchscript.interpreter import Walk
from wsb_engine.formats.torchscript.values import filled
from wsb_engine.model import Input

_VERSION = 21
"""Opset whose meaning the translated operators have."""
_OPAQUE = "aten"


def structure(walk: Walk, inputs: Iterable[str], outputs: Mapping[str, str]) -> Graph:
    """Return the graph of a walk without shapes.

    Args:
        walk: The walk.
        inputs: Names of the values that are inputs.
        outputs: Label of each output of the module → name of the value.
    """
    translator = _Translator(walk)
    for step in walk.steps:
        translator.step(step)
    for label, value in outputs.items():
        translator.node("Identity", (value,), (label,))
    return Graph(
        nodes=tuple(translator.nodes),
        inputs=tuple(Input(name=name, shape=None, dtype=None) for name in inputs),
        outputs=tuple(outputs),
        constants={**walk.stored, **translator.numbers},
    )


@dataclass
class _Translator:
    walk: Walk
    nodes: list[Node] = field(default_factory=list)
    numbers: dict[str, Tensor] = field(default_factory=dict)
    location: str = ""

    def step(self, step: Step) -> None:
        operation = step.call.node
        self.location = operation.location
        before = len(self.nodes)
        translate = _TABLE.get(operation.name.removesuffix("_")) if operation.kind.startswith("aten::") else None
        if translate is None or not translate(self, step):
            del self.nodes[before:]
            self.node(operation.name, step.reads, step.outputs, domain=_OPAQUE)

    def node(
        self, operator: str, inputs: Iterable[str], outputs: Iterable[str], domain: str = "", **attributes: Any
    ) -> None:
        self.nodes.append(
            Node(
                operator=operator,
                domain=domain,
                version=_VERSION,
                name=self.location,
                index=len(self.nodes),
                inputs=tuple(inputs),
                outputs=tuple(outputs),
                attributes=attributes,
            )
        )

    def operand(self, value: Any) -> str | None:
        """Return the name of a tensor, or of a number made one; None for anything else."""
        if isinstance(value, Name):
            return str(value)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return None
        name = f"number {len(self.numbers)}"
        self.numbers[name] = torch.tensor(float(value), dtype=torch.float64)
        return name

    def simple(self, operator: str, step: Step, operands: Iterable[Any], **attributes: Any) -> bool:
        """Add one node; False if an operand is neither a tensor nor a number. None is an input left out."""
        names = ["" if operand is None else self.operand(operand) for operand in operands]
        if None in names:
            return False
        self.node(operator, [name for name in names if name is not None], step.outputs, **attributes)
        return True

    def rank(self, value: Any) -> int | None:
        stored = self.walk.stored.get(value) if isinstance(value, Name) else None
        return None if stored is None else stored.ndim


_Translation = Callable[[_Translator, Step], bool]
_TABLE: dict[str, _Translation] = {}


def _enter(*names: str) -> Callable[[_Translation], _Translation]:
    def enter(translation: _Translation) -> _Translation:
        _TABLE.update(dict.fromkeys(names, translation))
        return translation

    return enter


def _named(operator: str, count: int, **attributes: Any) -> _Translation:
    """Return the translation to the operator of this name on the first arguments."""
    return lambda to, step: to.simple(operator, step, step.arguments[:count], **attributes)


for _name, _operator in {
    "erf": "Erf", "exp": "Exp", "log": "Log", "neg": "Neg", "reciprocal": "Reciprocal", "relu": "Relu",
    "sigmoid": "Sigmoid", "sqrt": "Sqrt", "tanh": "Tanh", "alias": "Identity", "clone": "Identity",
    "contiguous": "Identity", "detach": "Identity", "double": "Identity", "dropout": "Identity", "float": "Identity",
    "half": "Identity", "to": "Identity", "type_as": "Identity", "view": "Reshape", "reshape": "Reshape",
    "unflatten": "Reshape", "squeeze": "Squeeze", "unsqueeze": "Unsqueeze", "argmax": "ArgMax", "argmin": "ArgMin",
    "size": "Shape", "dim": "Shape", "numel": "Size", "len": "Shape",
}.items():  # fmt: skip
    _TABLE[_name] = _named(_operator, 1)
_TABLE["silu"] = _named("Swish", 1, alpha=1.0)
for _name, _operator in {
    "gt": "Greater", "lt": "Less", "matmul": "MatMul", "mm": "MatMul", "bmm": "MatMul", "mul": "Mul",
    "multiply": "Mul", "pow": "Pow", "prelu": "PRelu", "true_divide": "Div", "embedding": "Gather",
    "embedding_bag": "Gather",
}.items():  # fmt: skip
    _TABLE[_name] = _named(_operator, 2)
_TABLE["where"] = _named("Where", 3)
_TABLE["linear"] = _named("Gemm", 3, transB=1)
_enter("conv1d", "conv2d", "conv3d", "_convolution_mode")(_named("Conv", 3))
_enter("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")(_named("ConvTranspose", 3))
_TABLE["batch_norm"] = _named("BatchNormalization", 5)
_TABLE["instance_norm"] = _named("InstanceNormalization", 3)
_enter("t", "numpy_T")(_named("Transpose", 1, perm=(1, 0)))


@_enter("_convolution", "convolution")
def _convolution(to: _Translator, step: Step) -> bool:
    transposed = bool(step.arguments[6])
    return to.simple("ConvTranspose" if transposed else "Conv", step, step.arguments[:3])


@_enter("layer_norm", "rms_norm", "group_norm")
def _norm(to: _Translator, step: Step) -> bool:
    kind = {"layer_norm": "LayerNormalization", "rms_norm": "RMSNormalization", "group_norm": "GroupNormalization"}
    name = step.call.node.name
    return to.simple(kind[name], step, [step.arguments[0], *step.arguments[2 : 3 if name == "rms_norm" else 4]])


@_enter("gru", "lstm", "rnn_relu", "rnn_tanh", *STEPS)
def _recurrent(to: _Translator, step: Step) -> bool:
    """Add a node for each weight and bias: those of all layers are in one list, those of a single step are not."""
    x, _, *rest = step.arguments
    weights = [each for each in rest if each is not None] if step.call.node.name in STEPS else rest[0]
    if not isinstance(x, Name) or not isinstance(weights, list):
        return False
    for number, weight in enumerate(weights, 1):
        name = to.operand(weight)
        if name is None:
            return False
        outputs = step.outputs if number == len(weights) else [f"{step.outputs[0]} ({number})"]
        to.node("RNN", [x, name] if to.rank(weight) == 2 else [x, "", "", name], outputs)
    return bool(weights)


@_enter("bilinear")
def _bilinear(to: _Translator, step: Step) -> bool:
    x, y, weight, *bias = step.arguments
    return to.simple("Einsum", step, (x, weight, *(bias or [None]), y))


@_enter("square")
def _square(to: _Translator, step: Step) -> bool:
    return to.simple("Mul", step, [step.arguments[0], step.arguments[0]])


@_enter("add", "sub", "rsub")
def _sum(to: _Translator, step: Step) -> bool:
    a, b, *alpha = step.arguments
    if alpha not in ([], [1]):
        return False
    pair = (b, a) if step.call.node.name == "rsub" else (a, b)
    return to.simple("Add" if step.call.node.name.startswith("add") else "Sub", step, pair)


@_enter("div", "divide")
def _quotient(to: _Translator, step: Step) -> bool:
    return len(step.arguments) == 2 and to.simple("Div", step, step.arguments)


@_enter("addmm")
def _addmm(to: _Translator, step: Step) -> bool:
    bias, x, weight, *factors = step.arguments
    beta, alpha = filled(factors, 1, 1)
    return to.simple("Gemm", step, (x, weight, bias), alpha=float(alpha), beta=float(beta))


@_enter("transpose", "swapaxes", "swapdims")
def _swapped(to: _Translator, step: Step) -> bool:
    x, *axes = step.arguments
    matrix = to.rank(x) == 2 and set(axes) == {-1, -2}
    if {0, 1} != set(axes) and not matrix:
        return False
    return to.simple("Transpose", step, [x], perm=(1, 0))


@_enter("permute")
def _permuted(to: _Translator, step: Step) -> bool:
    order = step.arguments[1]
    return isinstance(order, list) and to.simple("Transpose", step, step.arguments[:1], perm=tuple(order))


@_enter("flatten")
def _flattened(to: _Translator, step: Step) -> bool:
    whole = tuple(step.arguments[1:]) == (1, -1)
    return to.simple("Flatten", step, step.arguments[:1], axis=1) if whole else _TABLE["reshape"](to, step)


@_enter("softmax", "log_softmax")
def _softmax(to: _Translator, step: Step) -> bool:
    axis = step.arguments[1]
    operator = "Softmax" if step.call.node.name == "softmax" else "LogSoftmax"
    return isinstance(axis, int) and to.simple(operator, step, step.arguments[:1], axis=axis)


@_enter("gelu")
def _gelu(to: _Translator, step: Step) -> bool:
    return to.simple("Gelu", step, step.arguments[:1], approximate=filled(step.arguments[1:], "none")[0])


@_enter("softplus")
def _softplus(to: _Translator, step: Step) -> bool:
    beta, threshold = filled(step.arguments[1:], 1, 20)
    plain = beta == 1 and threshold >= SURE
    return plain and to.simple("Softplus", step, step.arguments[:1])


@_enter("elu")
def _elu(to: _Translator, step: Step) -> bool:
    alpha, *scales = filled(step.arguments[1:], 1, 1, 1)
    return scales == [1, 1] and to.simple("Elu", step, step.arguments[:1], alpha=float(alpha))


@_enter("celu")
def _celu(to: _Translator, step: Step) -> bool:
    return to.simple("Celu", step, step.arguments[:1], alpha=float(filled(step.arguments[1:], 1.0)[0]))


@_enter("cat", "concat", "concatenate")
def _concatenated(to: _Translator, step: Step) -> bool:
    parts = step.arguments[0]
    return isinstance(parts, list) and to.simple("Concat", step, parts, axis=filled(step.arguments[1:], 0)[0])


@_enter("einsum")
def _einsum(to: _Translator, step: Step) -> bool:
    return isinstance(step.arguments[1], list) and to.simple("Einsum", step, step.arguments[1])


@_enter("sum", "amax", "logsumexp")
def _reduced(to: _Translator, step: Step) -> bool:
    operator = {"sum": "ReduceSum", "amax": "ReduceMax", "logsumexp": "ReduceLogSumExp"}[step.call.node.name]
    if len(step.arguments) < 3 or not isinstance(step.arguments[1], list):
        return False
    axes, kept = tuple(step.arguments[1]), int(bool(step.arguments[2]))
    return to.simple(operator, step, step.arguments[:1], axes=axes, keepdims=kept)


@_enter("_transformer_encoder_layer_fwd")
def _encoder_layer(to: _Translator, step: Step) -> bool:
    """Only the slots of its weights; what it computes stays opaque."""
    x = step.arguments[0]
    weights = [*step.arguments[3:7], *step.arguments[10:18]]
    slots = [to.operand(each) for each in (x, *weights)]
    if None in slots:
        return False
    source, *names = [str(slot) for slot in slots]
    kinds = ("Gemm", "Gemm", "LayerNormalization", "LayerNormalization", "Gemm", "Gemm")
    for index, kind in enumerate(kinds):
        to.node(kind, (source, *names[2 * index : 2 * index + 2]), (f"{step.outputs[0]}/{index}",))
    to.node("encoder layer", step.reads, step.outputs, domain=_OPAQUE)
    return True
