"""The eager module as the oracle: its tensors drawn at random, and its Hessian by double backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

Pick = Callable[[Any], Tensor]


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module in evaluation mode and double precision, no two of its tensors alike."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.6 * torch.randn(parameter.shape, generator=generator))
        for buffer in module.buffers():
            if buffer.is_floating_point():
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return module


def eager_hessian(module: nn.Module, x: Tensor, y: Tensor, pick: Pick = lambda result: result) -> Tensor:
    """∇² of the mean cross-entropy in the module's parameters, reverse over reverse.

    Without ``torch.func``, whose second derivative of torch's own layer normalisation is wrong.
    """
    start = {name: tensor.detach() for name, tensor in module.named_parameters()}
    sizes = [tensor.numel() for tensor in start.values()]

    def loss(flat: Tensor) -> Tensor:
        pieces = zip(start.items(), flat.split(sizes), strict=True)
        values = {name: piece.view_as(tensor) for (name, tensor), piece in pieces}
        return cross_entropy(pick(torch.func.functional_call(module, values, (x,))), y)

    with sdpa_kernel(SDPBackend.MATH):
        flat = torch.cat([tensor.reshape(-1) for tensor in start.values()])
        return torch.autograd.functional.hessian(loss, flat)  # type: ignore[no-any-return, no-untyped-call]
