"""A traced function by the calls that take Python the least time.

Calling the overloads of the short operators in an encoder's product takes a fifth of its time; calling the public
functions that run the same operators takes half of that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from wsb_engine.internals import UNSAFE_VIEW

aten = torch.ops.aten

_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    aten.add.Tensor: torch.add,
    aten.addcmul.out: torch.addcmul,
    aten.addmm.default: torch.addmm,
    aten.addmm.out: torch.addmm,
    aten.baddbmm.out: torch.baddbmm,
    aten.bmm.default: torch.bmm,
    aten.clone.default: torch.clone,
    aten.div.Scalar: torch.div,
    aten.div.Tensor: torch.div,
    aten.gather.default: torch.gather,
    aten.mean.dim: torch.mean,
    aten.mm.default: torch.mm,
    aten.mul.Scalar: torch.mul,
    aten.mul.Tensor: torch.mul,
    aten.neg.default: torch.neg,
    aten.permute.default: torch.permute,
    aten.select.int: torch.select,
    aten.squeeze.dim: torch.squeeze,
    aten.stack.default: torch.stack,
    aten.sub.Tensor: torch.sub,
    aten.sum.dim_IntList: torch.sum,
    aten.t.default: torch.t,
    aten.transpose.int: torch.transpose,
    aten.unsqueeze.default: torch.unsqueeze,
    aten.where.self: torch.where,
}
_METHODS: dict[Any, str] = {
    aten.add_.Tensor: "add_",
    aten.expand.default: "expand",
    aten.mul_.Scalar: "mul_",
    aten.mul_.Tensor: "mul_",
    aten.sub_.Tensor: "sub_",
    aten.view.default: "view",
    UNSAFE_VIEW: "view",
}
"""Methods of the first argument."""


def called_directly(graph: fx.Graph) -> Callable[..., list[Tensor]]:
    """Return the function of a graph, to the bit.

    Args:
        graph: A graph whose operators are ATen's and that reads nothing but its arguments; changed.
    """
    for node in graph.nodes:
        if node.target in _METHODS:
            node.op, node.target = "call_method", _METHODS[node.target]
        else:
            node.target = _FUNCTIONS.get(node.target, node.target)
    function: Callable[..., list[Tensor]] = fx.GraphModule(torch.nn.Module(), graph).forward
    return function
