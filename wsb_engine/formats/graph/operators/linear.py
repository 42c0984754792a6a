"""Matrix products."""

from __future__ import annotations

import torch
from torch import Tensor

from wsb_engine.formats.graph.operators.registry import Call, operator
from wsb_engine.formats.graph.plan import without_call

operator("MatMul")(without_call(torch.matmul))


@operator("Gemm")
def gemm(call: Call, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """α A B + β C, A and B transposed on request."""
    alpha, beta = call.get("alpha", 1.0), call.get("beta", 1.0)
    if a.ndim != 2 or b.ndim != 2:
        raise call.wrong(f"takes matrices, not shapes {list(a.shape)} and {list(b.shape)}")
    product = (a.T if call.get("transA", 0) else a) @ (b.T if call.get("transB", 0) else b)
    product = product if alpha == 1.0 else product * alpha
    if c is None:
        return product
    return product + (c if beta == 1.0 else c * beta)


@operator("Einsum")
def einsum(call: Call, *operands: Tensor) -> Tensor:
    return torch.einsum(call.get("equation", "").replace(" ", ""), *operands)
