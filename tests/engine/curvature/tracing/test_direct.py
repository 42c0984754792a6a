from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx

from wsb_engine.curvature.tracing import direct
from wsb_engine.curvature.tracing.record import record
from wsb_engine.internals import memory_of, tree_flatten, tree_unflatten

aten = torch.ops.aten
A, B, V = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) for shape in ((3, 3), (3, 3), (3,)))
ARGUMENTS = {
    "add_.Tensor": (A, B), "add.Tensor": (A, V), "addcmul.out": (A, B, V), "addmm.default": (V, A, B),
    "addmm.out": (A, A, B), "baddbmm.out": (A[None], A[None], B[None]), "bmm.default": (A[None], B[None]),
    "clone.default": (A.T,),
    "div.Scalar": (A, 3), "div.Tensor": (A, V), "expand.default": (V, [2, 3]),
    "gather.default": (A, 1, torch.tensor([[2], [0], [1]])), "mean.dim": (A, [0], True), "mm.default": (A, B),
    "mul_.Scalar": (A, 0.1), "mul_.Tensor": (A, B), "mul.Scalar": (A, 0.1), "mul.Tensor": (A, V),
    "neg.default": (A,), "permute.default": (A, [1, 0]), "select.int": (A, 0, 1), "squeeze.dim": (A[None], 0),
    "stack.default": ([A, B], 1), "sub_.Tensor": (A, B), "sub.Tensor": (A, V), "sum.dim_IntList": (A, [1]),
    "t.default": (A,), "transpose.int": (A, 0, 1), "unsqueeze.default": (A, 1), "_unsafe_view.default": (A, [9]),
    "view.default": (A, [9]), "where.self": (A > 0, A, B),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("operator", [*direct._FUNCTIONS, *direct._METHODS], ids=str)
def test_a_direct_call_gives_the_same_bits_in_the_same_memory(operator: Any, dtype: torch.dtype) -> None:
    name = str(operator).removeprefix("aten.")
    values, spec = tree_flatten(ARGUMENTS[name])
    given = [value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value for value in values]
    graph = fx.Graph()
    inputs = [graph.placeholder(f"x{i}") if isinstance(value, Tensor) else value for i, value in enumerate(given)]
    args = tree_unflatten(inputs, spec)
    graph.output([graph.call_function(operator, args, {"out": args[0]} if name.endswith(".out") else {})])
    module = fx.GraphModule(torch.nn.Module(), graph)
    results = []
    for way in (module, direct.called_directly(graph)):
        tensors = [value.clone() for value in given if isinstance(value, Tensor)]
        [result] = way(*tensors)
        shared = [memory_of(result) == memory_of(tensor) for tensor in tensors]
        results.append((result, tensors, shared, result.dtype, result.stride()))
    (one, written, *facts), (other, also, *same_facts) = results
    assert torch.equal(one, other)
    assert all(map(torch.equal, written, also))
    assert facts == same_facts


def test_other_operators_are_called_as_they_are() -> None:
    def function(x: Tensor, kernel: Tensor) -> list[Tensor]:
        laid_out = x.clone(memory_format=torch.channels_last)
        settings = ([4], [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [True, True, False])
        _, gradient, _ = aten.convolution_backward.default(torch.conv2d(x, kernel), laid_out, kernel, *settings)
        return [torch.cat([gradient, gradient]).to(torch.float32), aten.mean.dim(x, [2], True), x / 3]

    inputs = [torch.randn(2, 3, 5, 5, dtype=torch.float64), torch.randn(4, 3, 3, 3, dtype=torch.float64)]
    (graph, _), _ = record(function, inputs)
    assert all(map(torch.equal, direct.called_directly(graph)(*inputs), function(*inputs)))
