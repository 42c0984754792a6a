"""Shapes of elementwise operators: those that torch gives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from wsb_engine.formats.graph.shadows import Shadows

OPERATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": lambda a, b: torch.add(a, b, alpha=2),
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "a number": lambda a, b: 2.0 * a - 1,
    "neg": lambda a, b: -a,
    "tanh": lambda a, b: torch.tanh(a),
    "sigmoid": lambda a, b: torch.sigmoid(a),
    "relu": lambda a, b: torch.relu(a),
    "gelu": lambda a, b: functional.gelu(a, approximate="tanh"),
    "silu": lambda a, b: functional.silu(a),
    "exp": lambda a, b: torch.exp(a),
    "log": lambda a, b: torch.log(a),
    "erf": lambda a, b: torch.erf(a),
    "sqrt": lambda a, b: torch.sqrt(a),
    "softplus": lambda a, b: functional.softplus(a),
    "elu": lambda a, b: functional.elu(a),
    "leaky_relu": lambda a, b: functional.leaky_relu(a),
    "comparison": torch.lt,
    "power": lambda a, b: a**2,
}
PAIRS: dict[str, tuple[Tensor, Tensor]] = {
    "alike": (torch.rand(3, 4), torch.rand(3, 4)),
    "broadcast": (torch.rand(3, 1, 4), torch.rand(5, 1)),
    "a row": (torch.rand(3, 4), torch.rand(4)),
    "no dimensions": (torch.rand(3, 4), torch.tensor(2.0, dtype=torch.float64)),
    "two dtypes": (torch.rand(3, 4), torch.rand(3, 4, dtype=torch.float64)),
    "whole numbers": (torch.rand(3, 4), torch.ones(3, 4, dtype=torch.int64)),
    "transposed": (torch.rand(4, 3).T, torch.rand(3, 1)),
    "channels last": (torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last), torch.rand(3, 1, 1)),
    "empty": (torch.rand(0, 4), torch.rand(4)),
}


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("operator", OPERATORS)
def test_a_result_has_the_shape_the_dtype_and_the_order_that_torch_gives_it(operator: str, pair: str) -> None:
    function, tensors = OPERATORS[operator], PAIRS[pair]
    real = function(*tensors)
    with Shadows():
        shadow = function(*(tensor.to("meta") for tensor in tensors))
    assert shadow.is_meta
    assert (shadow.shape, shadow.dtype, shadow.stride()) == (real.shape, real.dtype, real.stride())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bias", [(4,), (3, 4), (1, 4), ()])
def test_products_have_the_shape_and_the_dtype_that_torch_gives_them(bias: tuple[int, ...], dtype: torch.dtype) -> None:
    left, right, added = (torch.rand(shape, dtype=dtype) for shape in ((3, 5), (5, 4), bias))
    with Shadows():
        product = left.to("meta") @ right.to("meta")
        layer = torch.addmm(added.to("meta"), left.to("meta"), right.to("meta"))
    assert (product.shape, product.dtype) == ((left @ right).shape, dtype)
    assert (layer.shape, layer.dtype) == (torch.addmm(added, left, right).shape, dtype)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda rows: rows + rows.new_empty(3, 5),
        lambda rows: rows @ rows,
        lambda rows: torch.addmm(rows.new_empty(5), rows, rows.T),
        lambda rows: torch.mm(rows, rows.new_empty(4)),
    ],
)
def test_what_torch_refuses_is_refused(wrong: Callable[[Tensor], Tensor]) -> None:
    with Shadows(), pytest.raises(RuntimeError):
        wrong(torch.empty(3, 4, device="meta"))
