"""The right values, by double backward in float64 of the eager module: no code is shared with the engine."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np
import scipy.sparse.linalg
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.families import CLASSES, Inputs

SMALL = 1500
"""Up to so many parameters the Hessian is written out."""


def labels(samples: int) -> Tensor:
    return torch.arange(samples) % CLASSES


class Oracle:
    """Cross-entropy of an eager module in float64 over some of its parameters."""

    def __init__(self, module: nn.Module, inputs: Inputs) -> None:
        self._module = module.double().requires_grad_(True)
        self._inputs = tuple(each.double() if each.is_floating_point() else each for each in inputs.values())
        self._labels = labels(len(self._inputs[0]))

    def logits(self) -> Tensor:
        with torch.no_grad():
            z: Tensor = self._module(*self._inputs)
        return z

    def unused(self) -> set[str]:
        """Names of parameters that the logits do not depend on."""
        names, tensors = zip(*self._module.named_parameters(), strict=True)
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            gradients = torch.autograd.grad(self._loss(), tensors, allow_unused=True)
        return {name for name, gradient in zip(names, gradients, strict=True) if gradient is None}

    @functools.cache  # noqa: B019 - oracles live as long as the process
    def lambda_max(self) -> float:
        """The largest eigenvalue of the Hessian over all parameters; those without effect change nothing."""
        tensors = [each for name, each in self._module.named_parameters() if name not in self.unused()]
        count = sum(tensor.numel() for tensor in tensors)
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            gradients = torch.autograd.grad(self._loss(), tensors, create_graph=True)
            gradient = torch.cat([each.reshape(-1) for each in gradients])

            def product(vector: np.ndarray) -> np.ndarray:
                direction = torch.from_numpy(np.ascontiguousarray(vector)).reshape(-1)
                rows = torch.autograd.grad(gradient @ direction, tensors, retain_graph=True, allow_unused=True)
                flat = [
                    torch.zeros_like(tensor) if row is None else row for row, tensor in zip(rows, tensors, strict=True)
                ]
                return torch.cat([each.reshape(-1) for each in flat]).numpy()

            if count <= SMALL:
                return float(np.linalg.eigvalsh(np.stack([product(row) for row in np.eye(count)]))[-1])
            operator = scipy.sparse.linalg.LinearOperator((count, count), matvec=product, dtype=np.float64)
            start = np.random.default_rng(3).standard_normal(count)
            found = scipy.sparse.linalg.eigsh(operator, k=1, which="LA", tol=1e-10, v0=start, ncv=40)
            return float(found[0][0])

    def _loss(self) -> Tensor:
        return F.cross_entropy(self._module(*self._inputs), self._labels)


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
