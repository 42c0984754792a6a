"""Live torch modules. Unlike files they are trusted: the module runs as Python code in this process."""

from __future__ import annotations

import copy
import inspect
import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from threading import RLock
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from wsb_engine.curvature.closed_form.activations import KINDS
from wsb_engine.curvature.tracing.operators import activation_named
from wsb_engine.errors import ModelError
from wsb_engine.formats.graph.head import require_head
from wsb_engine.formats.graph.kernels.elementwise import SURE
from wsb_engine.formats.graph.logits import FINISHES, Finish, require_single
from wsb_engine.formats.graph.problems import require_finite
from wsb_engine.formats.substitutes import Substitutes, follow_parameters
from wsb_engine.internals import outside_transforms
from wsb_engine.model import MLP, Activation, Classifier, DenseLayer, Form, Input, LogitModel, Tensors
from wsb_engine.options import Head


@dataclass(frozen=True)
class _Step:
    """One operation of a traced forward pass that has a single tensor input."""

    kind: str
    """linear, flatten, passive, softmax, log_softmax, an activation's kind, or other."""
    name: str
    source: fx.Node
    weight: str | None = None
    bias: str | None = None
    alpha: float = 1.0
    axis: int | None = None
    """Of a softmax."""


_KINDS = KINDS - {"identity"}
_PLAIN = _KINDS - {"elu", "gelu", "gelu_tanh", "softplus"}
"""Activations that have no options."""
_NAMED = (*_PLAIN, "softmax", "log_softmax")
_FUNCTIONS: dict[Any, str] = {
    **{getattr(owner, kind): kind for owner in (torch, F) for kind in _NAMED if hasattr(owner, kind)},
    **{kind: kind for kind in _NAMED if hasattr(Tensor, kind)},
    **dict.fromkeys((F.dropout, "contiguous"), "passive"),
    **dict.fromkeys((torch.flatten, torch.reshape, "flatten", "reshape", "view"), "flatten"),
}
_MODULES: dict[type[nn.Module], str] = {
    **{kind: name.lower() for name, kind in vars(nn).items() if name.lower() in _PLAIN},
    nn.Identity: "passive",
    nn.Dropout: "passive",
    nn.Flatten: "flatten",
    nn.Softmax: "softmax",
    nn.LogSoftmax: "log_softmax",
}
_READINGS: dict[Head, tuple[Finish, str]] = {
    "probabilities": ("log", "probabilities"),
    "binary_probability": ("logit", "binary_probability"),
    "log_probabilities": ("none", "log_probabilities"),
}
"""What the caller says that the output means → what remains to reach the logits, and the head that a report names."""
_SOFTMAXES = frozenset({"softmax", "log_softmax"})
_KEEPING: frozenset[Any] = frozenset(
    {layer.forward for layer in (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)} | {"contiguous"}
)
"""Operations that return their input in evaluation mode."""
_MOVES = ("flatten", "permute", "ravel", "reshape", "select", "squeeze", "transpose", "unsqueeze")
_MOVING = frozenset(
    {*_KEEPING, nn.Flatten.forward, nn.Unflatten.forward, operator.getitem, "view", *_MOVES}
    | {getattr(torch, name) for name in _MOVES}
)
"""The same, and those that only pick and arrange elements of their first input."""
_AFFINE: frozenset[Any] = frozenset(
    {layer.forward for layer in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)}
    | {F.linear, F.conv1d, F.conv2d, F.conv3d, torch.matmul, torch.mm, torch.addmm, operator.matmul, "matmul", "mm"}
)
"""Layers: nothing squashes what they give."""
_SUMS = frozenset({operator.add, torch.add, "add"})


def from_module(module: nn.Module) -> Classifier:
    """Wrap a copy of a live module in evaluation mode; later training doesn't change it.

    Args:
        module: Maps one tensor, or several by name, of N samples to (N, C) logits or probabilities, (N, 1) or (N,); for
            losses of tokens or pixels to (N, T, C) or (N, C, …).

    Raises:
        ModelError: ``model_no_parameters``, ``model_not_finite``.

    Examples:
        >>> import torch
        >>> import wsb
        >>> module = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3))
        >>> classifier = wsb.from_module(module)
        >>> {name: tuple(tensor.shape) for name, tensor in classifier.parameters.items()}
        {'0.weight': (6, 4), '0.bias': (6,), '2.weight': (3, 6), '2.bias': (3,)}
    """
    return _ModuleClassifier(module)


def live_mlp(module: nn.Module) -> MLP | None:
    """The MLP that a live module is, up to a softmax, log-softmax or sigmoid at its end; None if it is none.

    Raises:
        ModelError: ``multilabel_unsupported``.
    """
    graph = _trace(module)
    if graph is None:
        return None
    stripped, graph, end = _strip(module, graph, "row")
    steps, parameters = _chain(stripped, graph), dict(module.named_parameters())
    mlp = _mlp(steps, _tied(module), parameters) if steps else None
    if mlp is not None and end is not None and end.kind == "sigmoid":
        require_single(len(parameters[mlp.layers[-1].weight]))
    return mlp


def _computed(module: nn.Module) -> dict[int, Tensor]:
    """Copies of the tensors that submodules keep of the last run, such as normalised weights, which can't be copied."""
    kept = (each for part in module.modules() for each in vars(part).values() if isinstance(each, Tensor))
    return {id(tensor): tensor.detach().clone() for tensor in kept if not tensor.is_leaf}


class _ModuleClassifier(Classifier):
    format = "module"
    sha256 = None

    def __init__(self, module: nn.Module) -> None:
        self._module = copy.deepcopy(module, _computed(module)).eval().requires_grad_(False)
        follow_parameters(self._module)
        self.parameters = {name: tensor.detach() for name, tensor in self._module.named_parameters()}
        if not self.parameters:
            raise ModelError(
                "the module has no parameters", code="model_no_parameters", advice="Wrap the module that was trained."
            )
        require_finite(self.parameters)
        self._tied = _tied(self._module)
        self.inputs = tuple(
            Input(name=name, shape=None, dtype=None)
            for name, parameter in inspect.signature(self._module.forward).parameters.items()
            if parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        )

    def resolve(
        self, *, head: Head = "auto", output: str | None = None, include: tuple[str, ...] = (), form: Form = "row"
    ) -> LogitModel:
        if output is not None:
            raise ModelError(
                f"a module has no output named {output!r}",
                code="unknown_output",
                advice="Leave output unset, or wrap the module so that it returns the logits alone.",
            )
        require_head(head, form)
        module, end = self._module, None
        graph = _trace(self._module)
        if graph is not None and form != "values" and head not in ("logits", "log_probabilities", "binary_logit"):
            module, graph, end = _strip(self._module, graph, form)
        stripped = "none" if end is None else end.kind
        if end is not None and form != "row" and (stripped == "sigmoid") != (form == "labels"):
            raise ModelError(
                f"the module ends in a {stripped}, which does not fit the loss",
                code="unsupported_head",
                advice="Set loss to the one that the model was trained with: a softmax goes with cross-entropies of "
                "classes, a sigmoid with binary_cross_entropy or multilabel.",
            )
        steps = None if graph is None else _chain(self._module, graph)
        finish, applied = _READINGS.get(head, ("none", "none")) if stripped == "none" else ("none", stripped)
        mlp = _mlp(steps, self._tied, self.parameters) if steps and finish == "none" else None
        single = form == "row" and (stripped == "sigmoid" or head in ("binary_logit", "binary_probability"))
        return LogitModel(
            function=self._function(module, finish, single),
            parameters=self.parameters,
            mlp=mlp,
            activations=_activations(self._module, graph),
            tied=self._tied,
            head=applied,
            class_axis=None if end is None or form != "positions" else end.axis,
            head_known=head != "auto" or end is not None or (graph is not None and _is_affine(module, _result(graph))),
        )

    def _function(self, module: nn.Module, finish: Finish, single: bool) -> Callable[[Tensors, Tensors], Tensor]:
        names = [entry.name for entry in self.inputs]
        buffers = dict(self._module.named_buffers())
        # A call puts its tensors in the place of the module's, and chooses kernels for the whole process.
        alone = RLock()

        @cache
        def buffers_on(device: torch.device) -> dict[str, Tensor]:
            with outside_transforms():  # which the copies outlive
                return {name: tensor.to(device) for name, tensor in buffers.items()}

        def call(parameters: Tensors, inputs: Tensors) -> Tensor:
            first = next(iter(parameters.values()))
            state = {
                name: tensor.to(first.dtype) if tensor.is_floating_point() else tensor
                for name, tensor in buffers_on(first.device).items()
            }
            # The fused attention kernels have no second derivative.
            with alone, sdpa_kernel(SDPBackend.MATH), Substitutes():
                z = functional_call(module, {**state, **parameters}, tuple(inputs[name] for name in names))
            if not isinstance(z, Tensor):
                raise ModelError(
                    f"the module returns {type(z).__name__}, not a tensor",
                    code="unsupported_output",
                    advice="Wrap the module so that it returns the logits alone.",
                )
            z = z.unsqueeze(1) if z.ndim == 1 else z
            if single and z.ndim == 2:
                require_single(z.shape[1])
            return FINISHES[finish](z)

        return call


def _tied(module: nn.Module) -> tuple[str, ...]:
    owners: dict[int, list[str]] = {}
    for name, tensor in module.named_parameters(remove_duplicate=False):
        owners.setdefault(id(tensor), []).append(name)
    return tuple(names[0] for names in owners.values() if len(names) > 1)


def _trace(module: nn.Module) -> fx.Graph | None:
    try:
        return fx.symbolic_trace(module).graph
    except Exception:
        # Tracing runs the module's own code on proxies, which may raise anything: then it is a general function.
        return None


def _step(module: nn.Module, node: fx.Node) -> _Step | None:
    """Return what a node does, or None if it isn't an operation on one tensor."""
    tensors = node.all_input_nodes
    if node.op == "call_module":
        return _module_step(module.get_submodule(str(node.target)), node) if len(tensors) == 1 else None
    if node.op not in ("call_function", "call_method") or not tensors or tensors[0].op == "get_attr":
        return None
    source = tensors[0]
    if node.target is F.linear:
        return _linear_step(node)
    if any(other.op != "get_attr" and not _is_shape(other) for other in tensors[1:]):
        return None
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    if node.target is F.gelu:
        return _Step("gelu_tanh" if node.kwargs.get("approximate") == "tanh" else "gelu", "gelu", source)
    if node.target is F.softplus and not node.args[1:] and not node.kwargs:
        return _Step("softplus", "softplus", source)
    if node.target is F.elu:
        alpha = node.args[1] if len(node.args) > 1 else node.kwargs.get("alpha", 1.0)
        return _Step("elu", "elu", source, alpha=float(alpha))  # type: ignore[arg-type]
    kind = _FUNCTIONS.get(node.target, "other")
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    return _Step(kind, name, source, axis=dim if kind in _SOFTMAXES and isinstance(dim, int) else None)


def _is_shape(node: fx.Node) -> bool:
    """x.size(0), x.shape[0] and the like: numbers for a reshape."""
    return node.target in ("size",) or getattr(node.target, "__name__", "") in ("getattr", "getitem")


def _module_step(child: nn.Module, node: fx.Node) -> _Step:
    source, name = node.all_input_nodes[0], type(child).__name__
    if type(child) is nn.Linear:
        bias = f"{node.target}.bias" if child.bias is not None else None
        return _Step("linear", name, source, f"{node.target}.weight", bias)
    if type(child) is nn.GELU:
        return _Step("gelu_tanh" if child.approximate == "tanh" else "gelu", name, source)
    if type(child) is nn.Softplus and child.beta == 1 and child.threshold >= SURE:
        return _Step("softplus", name, source)
    if type(child) is nn.ELU:
        return _Step("elu", name, source, alpha=float(child.alpha))
    kind = _MODULES.get(type(child), "other")
    if isinstance(child, nn.Flatten) and (child.start_dim, child.end_dim) != (1, -1):
        kind = "other"
    return _Step(kind, name, source, axis=child.dim if isinstance(child, (nn.Softmax, nn.LogSoftmax)) else None)


def _linear_step(node: fx.Node) -> _Step | None:
    weight = node.args[1] if len(node.args) > 1 else node.kwargs.get("weight")
    bias = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
    if not isinstance(weight, fx.Node) or weight.op != "get_attr":
        return None
    if bias is not None and not (isinstance(bias, fx.Node) and bias.op == "get_attr"):
        return None
    return _Step(
        "linear",
        "linear",
        node.all_input_nodes[0],
        str(weight.target),
        None if bias is None else str(bias.target),
    )


def _result(graph: fx.Graph) -> fx.Node | None:
    value = next(node for node in graph.nodes if node.op == "output").args[0]
    return value if isinstance(value, fx.Node) else None


def _strip(module: nn.Module, graph: fx.Graph, form: Form) -> tuple[nn.Module, fx.Graph, _Step | None]:
    """Return the module without its softmax, log-softmax or sigmoid at the end, and that step if there is one.

    What only arranges the elements after a sigmoid stays: it gives the same of the logits. After a softmax it would
    leave open which of them the softmax normalises.
    """
    reader, head, arranged = None, _result(graph), False
    while head is not None and (operation := _operation(module, head)) in _MOVING:
        reader, head, arranged = head, head.all_input_nodes[0], arranged or operation not in _KEEPING
    step = None if head is None else _step(module, head)
    axis = None if step is None or arranged else step.axis
    over_classes = axis is not None and (axis in (-1, 1) or form == "positions")
    if head is None or step is None or not (step.kind == "sigmoid" or over_classes):
        return module, graph, None
    shorter = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    output = shorter.graph_copy(graph, mapping)
    if reader is not None:
        mapping[reader].replace_input_with(mapping[head], mapping[step.source])
    shorter.output(mapping[step.source] if reader is None else output)
    body = fx.GraphModule(module, shorter)
    body.graph.eliminate_dead_code()
    body.recompile()
    return body, body.graph, step


def _operation(module: nn.Module, node: fx.Node) -> Any:
    """Return a node's function, the name of its method, or the forward method of its submodule; None if it has none."""
    if node.op == "call_module":
        return type(module.get_submodule(str(node.target))).forward
    return node.target if node.op in ("call_function", "call_method") else None


def _is_affine(module: nn.Module, node: fx.Node | None) -> bool:
    """Return whether a value is the direct result of a layer, so that it is logits."""
    while node is not None and _operation(module, node) in _MOVING:
        node = node.all_input_nodes[0]
    operation = None if node is None else _operation(module, node)
    if node is not None and operation in _SUMS:
        return any(_is_affine(module, term) for term in node.all_input_nodes)
    return operation in _AFFINE


def _chain(module: nn.Module, graph: fx.Graph) -> list[_Step] | None:
    """Return the steps from the input to the result, or None if the graph branches."""
    node = _result(graph)
    steps: list[_Step] = []
    while node is not None and node.op != "placeholder":
        step = _step(module, node)
        if step is None:
            return None
        steps.insert(0, step)
        node = step.source
    return steps if node is not None else None


def _mlp(steps: list[_Step], tied: tuple[str, ...], parameters: Tensors) -> MLP | None:
    layers: list[DenseLayer] = []
    activations: list[Activation] = []
    flat = False
    for step in (step for step in steps if step.kind != "passive"):
        if step.kind == "flatten" and not layers:
            flat = True
        elif step.kind == "linear" and step.weight is not None and step.weight in parameters:
            if len(layers) > len(activations):
                activations.append(Activation(kind="identity"))
            layers.append(DenseLayer(weight=step.weight, transposed=False, bias=step.bias))
        elif step.kind == "elu" and step.alpha != 1.0:
            return None  # not smooth
        elif step.kind in _KINDS and len(layers) == len(activations) + 1:
            activations.append(Activation(kind=step.kind, alpha=step.alpha))
        else:
            return None
    names = [name for layer in layers for name in (layer.weight, layer.bias) if name is not None]
    distinct = len(set(names)) == len(names) and set(names) <= set(parameters) and not set(names) & set(tied)
    if not layers or len(layers) != len(activations) + 1 or not distinct:
        return None
    return MLP(layers=tuple(layers), activations=tuple(activations), features=_flattened if flat else _first)


def _first(inputs: Tensors) -> Tensor:
    return next(iter(inputs.values()))


def _flattened(inputs: Tensors) -> Tensor:
    return _first(inputs).flatten(1)


def _activations(module: nn.Module, graph: fx.Graph | None) -> tuple[str, ...]:
    """Names of the nonlinearities, in order, without repetition."""
    if graph is None:
        names = [type(child).__name__ for child in module.modules()]
    else:
        names = [step.name for node in graph.nodes if (step := _step(module, node)) is not None]
    return tuple(dict.fromkeys(filter(None, map(activation_named, names))))
