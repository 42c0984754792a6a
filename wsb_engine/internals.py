"""Every private name of torch and Keras that the engine uses, and those that torch does not document.

A name that a version of torch lacks is missing here and nowhere else; tests/engine/test_internals.py resolves each.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import CompilationUnit, ModuleDict, ParameterDict, ScriptModule
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack as outside_transforms
from torch._ops import OpOverload
from torch.autograd.function import BackwardCFunction
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten
from torch.utils.flop_counter import flop_registry

__all__ = [
    "EFFICIENT_ZERO",
    "TO_COPY",
    "UNSAFE_VIEW",
    "BackwardCFunction",
    "CompilationUnit",
    "DispatchMode",
    "ModuleDict",
    "OpOverload",
    "ParameterDict",
    "ScriptModule",
    "TreeSpec",
    "flop_registry",
    "following_parameters",
    "forward_method",
    "has_hooks",
    "import_compiler",
    "import_ir_module",
    "is_frozen",
    "keras_layers",
    "keras_shortened",
    "memory_of",
    "outside_transforms",
    "schema_of",
    "tree_flatten",
    "tree_leaves",
    "tree_unflatten",
    "uncompiled",
]

TO_COPY = torch.ops.aten._to_copy.default
UNSAFE_VIEW = torch.ops.aten._unsafe_view.default
EFFICIENT_ZERO = torch.ops.aten._efficientzerotensor.default


class DispatchMode(TorchDispatchMode):
    """torch's mode that intercepts every operator, for code that nothing compiles."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # To skip its compiler, torch would import it, which takes more than a second.
        return False


def import_compiler() -> None:
    """Import what torch imports at the first transform or operator on meta tensors, which takes two seconds."""
    importlib.import_module("torch._dynamo")


def schema_of(operator: Any) -> Any:
    """Return the schema of an operator; None for anything else."""
    return getattr(operator, "_schema", None)


def memory_of(tensor: Tensor) -> int:
    """Return a number that a tensor shares with its views and with no other tensor alive; a sparse one has no views."""
    return int(tensor.untyped_storage()._cdata) if tensor.layout == torch.strided else id(tensor)


def following_parameters(kind: type[nn.RNNBase]) -> type[nn.RNNBase]:
    """Return a class of recurrent layers that read their weights where the module keeps its parameters.

    torch's own read them from a list that is made once.
    """

    def weights(self: nn.RNNBase) -> list[Tensor | None]:
        return [getattr(self, name, None) for name in self._flat_weights_names]

    return type(kind.__name__, (kind,), {"_flat_weights": property(weights, lambda self, value: None)})


def import_ir_module(unit: CompilationUnit, archive: bytes) -> Any:
    """Load a TorchScript archive into ``unit`` on the CPU, as ``torch.jit.load`` does.

    Raises:
        RuntimeError: if torch can't read it.
    """
    load: Any = torch._C.import_ir_module_from_buffer  # torch's type stub has another signature
    return load(unit, archive, torch.device("cpu"), {}, False)


def forward_method(module: Any) -> Any:
    """Return the method ``forward`` of a loaded TorchScript module; None if it has none."""
    return module._get_method("forward") if module._has_method("forward") else None


def is_frozen(module: Any) -> bool:
    """Return whether ``torch.jit.freeze`` made a loaded TorchScript module: it has no mode that it could be set to."""
    return not module.hasattr("training")


def has_hooks(module: Any) -> bool:
    """Return whether a loaded TorchScript module has hooks around ``forward``."""
    return bool(module._get_forward_hooks() or module._get_forward_pre_hooks())


def uncompiled(module: nn.Module) -> nn.Module:
    """Return the module that ``torch.compile`` wrapped; any other as it is."""
    return getattr(module, "_orig_mod", module)


def keras_layers(model: Any) -> list[Any]:
    """Return a model of Keras and all layers in it, those inside layers included."""
    return list(model._flatten_layers())


def keras_shortened() -> dict[str, str]:
    """Return the table by which Keras replaces results of 64 bits: on torch, it computes in float32 at most."""
    table: dict[str, str] = importlib.import_module("keras.src.backend.common.dtypes").BIT64_TO_BIT32_DTYPE
    return table
