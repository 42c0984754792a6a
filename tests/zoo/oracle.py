"""The right values, by double backward in float64 of the eager module: no code is shared with the engine."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.sparse.linalg
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from zoo.families import CLASSES, Inputs

SMALL = 1500
"""Up to so many parameters the Hessian is written out."""
FLOOR = 1e-12
"""Relative error of a largest eigenvalue in float64, below which the estimate by two computations does not go."""
DIFFERENCES = 8
"""The estimate, as a multiple of the difference between the two."""
_FLOATS = (torch.float16, torch.bfloat16, torch.float32)
_WIDENING = (Tensor.float, Tensor.half, Tensor.bfloat16)


def labels(samples: int) -> Tensor:
    return torch.arange(samples) % CLASSES


class _Wide(TorchFunctionMode):
    """Makes casts between floating dtypes identities, as the product documents: modules cast to float32 inside.

    Args:
        rounded: True to round the module's Python numbers to float32, as some exporters do.
    """

    def __init__(self, *, rounded: bool) -> None:
        super().__init__()
        self._rounded = rounded

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if function in _WIDENING:
            return args[0].double()
        return function(*map(self._widened, args), **{key: self._widened(each) for key, each in (kwargs or {}).items()})

    def _widened(self, value: Any) -> Any:
        if isinstance(value, float) and self._rounded and abs(value) < float(np.finfo(np.float32).max):
            return float(np.float32(value))
        return torch.float64 if isinstance(value, torch.dtype) and value in _FLOATS else value


class Oracle:
    """Cross-entropy of an eager module in float64 over some of its parameters."""

    def __init__(self, module: nn.Module, inputs: Inputs) -> None:
        self._module = module.double().requires_grad_(True)
        self._inputs = tuple(each.double() if each.is_floating_point() else each for each in inputs.values())
        self._labels = labels(len(self._inputs[0]))

    def logits(self) -> Tensor:
        with torch.no_grad():
            return self._logits(self._inputs)

    def unused(self) -> set[str]:
        """Names of parameters that the logits do not depend on."""
        names, tensors = zip(*self._module.named_parameters(), strict=True)
        gradients = torch.autograd.grad(self._logits(self._inputs).square().sum(), tensors, allow_unused=True)
        return {name for name, gradient in zip(names, gradients, strict=True) if gradient is None}

    @functools.cache  # noqa: B019 - oracles live as long as the process
    def lambda_max(self) -> tuple[float, float]:
        """The largest eigenvalue of the Hessian over all parameters, and an estimate of its error.

        The estimate is a multiple of the difference from a second computation: samples in reverse, another start,
        numbers rounded to float32. Exporters fold such numbers into others, whose rounding differs as much. Parameters
        without effect change nothing.
        """
        value = self._lambda_max(3, backwards=False, rounded=False)
        other = self._lambda_max(4, backwards=True, rounded=True)
        return value, max(DIFFERENCES * abs(value - other), FLOOR * abs(value))

    def _lambda_max(self, seed: int, *, backwards: bool, rounded: bool) -> float:
        inputs = tuple(each.flip(0) if backwards else each for each in self._inputs)
        target = self._labels.flip(0) if backwards else self._labels
        unused = self.unused()
        tensors = [each for name, each in self._module.named_parameters() if name not in unused]
        count = sum(tensor.numel() for tensor in tensors)
        loss = F.cross_entropy(self._logits(inputs, rounded=rounded), target)
        gradients = torch.autograd.grad(loss, tensors, create_graph=True)
        gradient = torch.cat([each.reshape(-1) for each in gradients])

        def product(vector: np.ndarray) -> np.ndarray:
            direction = torch.from_numpy(np.ascontiguousarray(vector)).reshape(-1)
            rows = torch.autograd.grad(
                gradient @ direction, tensors, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            return torch.cat([row.reshape(-1) for row in rows]).numpy()

        if count <= SMALL:
            return float(np.linalg.eigvalsh(np.stack([product(row) for row in np.eye(count)]))[-1])
        operator = scipy.sparse.linalg.LinearOperator((count, count), matvec=product, dtype=np.float64)
        start = np.random.default_rng(seed).standard_normal(count)
        found = scipy.sparse.linalg.eigsh(operator, k=1, which="LA", tol=1e-10, v0=start, ncv=40)
        return float(found[0][0])

    def _logits(self, inputs: tuple[Tensor, ...], *, rounded: bool = False) -> Tensor:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), _Wide(rounded=rounded):
            z: Tensor = self._module(*inputs)
        return z


class _Decay(nn.Module):
    """Has a module keep A = −exp(A_log) in place of A_log."""

    def forward(self, decay: Tensor) -> Tensor:
        return (-decay).log()

    def right_inverse(self, logarithm: Tensor) -> Tensor:
        return -logarithm.exp()


def fold(module: nn.Module, inputs: Inputs) -> tuple[str, ...]:
    """Do in place what exporters do to constants: sentences of what was folded."""
    with torch.no_grad():
        mixers = [each for each in module.modules() if hasattr(each, "A_log")]
        for mixer in mixers:
            parametrize.register_parametrization(mixer, "A_log", _Decay())
    return (
        *(["batch normalisations are folded by the exporter"] if fold_batch_norms(module, inputs) else []),
        *(["−exp(A_log) is folded by the exporter: A is the parameter"] if mixers else []),
    )


def fold_batch_norms(module: nn.Module, inputs: Inputs) -> Mapping[str, str]:
    """Fold, in place, each batch normalisation into the convolution before it; names of both, by what a run shows."""
    outputs: dict[int, str] = {}
    kept: list[Tensor] = []
    pairs: dict[str, str] = {}

    def after(name: str):  # type: ignore[no-untyped-def]
        def hook(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
            outputs[id(output)] = name
            kept.append(output)

        return hook

    def before(name: str):  # type: ignore[no-untyped-def]
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if id(inputs[0]) in outputs:
                pairs[name] = outputs[id(inputs[0])]

        return hook

    handles = []
    for name, each in module.named_modules():
        if isinstance(each, nn.Conv2d):
            handles.append(each.register_forward_hook(after(name)))
        elif isinstance(each, nn.BatchNorm2d):
            handles.append(each.register_forward_pre_hook(before(name)))
    with torch.no_grad():
        module(*inputs.values())
    for handle in handles:
        handle.remove()
    for norm, convolution in pairs.items():
        fused = torch.nn.utils.fuse_conv_bn_eval(module.get_submodule(convolution), module.get_submodule(norm))
        module.set_submodule(convolution, fused)
        module.set_submodule(norm, nn.Identity())
    return pairs
