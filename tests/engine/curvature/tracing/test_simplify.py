"""Passes over traced graphs: what each simplifies, and what it leaves as it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from wsb_engine.curvature.tracing.direct import called_directly
from wsb_engine.curvature.tracing.record import record
from wsb_engine.curvature.tracing.simplify import multiply_by_slopes, simplify, zeros

aten = torch.ops.aten


def several(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


def traced(function: Callable[..., Any], inputs: list[Tensor]) -> fx.Graph:
    (graph, _), _ = record(lambda *values: [function(*values)], inputs)
    return graph


def values(graph: fx.Graph, inputs: list[Tensor]) -> list[Tensor]:
    return fx.GraphModule(torch.nn.Module(), graph)(*inputs)  # type: ignore[no-any-return]


def counts(graph: fx.Graph) -> Counter[str]:
    return Counter(str(node.target) for node in graph.nodes if node.op == "call_function")


def simplified(function: Callable[..., Any], inputs: list[Tensor], zero: tuple[int, ...] = ()) -> Counter[str]:
    """Operators that are left; checks values, the inputs, and that direct calls give the same bits."""
    graph = traced(function, inputs)
    given = graph.find_nodes(op="placeholder")
    simplify(graph, [given[index] for index in zero])
    left, kept = counts(graph), [tensor.clone() for tensor in inputs]
    [value] = values(graph, inputs)
    torch.testing.assert_close(value, function(*inputs), rtol=1e-13, atol=1e-13)
    assert torch.equal(value, called_directly(graph)(*inputs)[0])
    assert all(map(torch.equal, inputs, kept))
    return left


def test_a_repeated_computation_is_done_once() -> None:
    assert simplified(lambda x: (x.exp() - 1) * (x.exp() - 1), several((3, 4)))["aten.exp.default"] == 1


def test_products_are_added_where_the_first_is_computed() -> None:
    left = simplified(lambda a, b, c, d: a @ b + c @ d, several((5, 3), (3, 4), (5, 2), (2, 4)))
    assert left == {"aten.mm.default": 1, "aten.addmm.out": 1}


def test_a_product_is_added_to_each_row_of_a_bias_that_stays_as_it_is() -> None:
    left = simplified(lambda u, a, b, c, d: (u + a @ b) + c @ d, several((4,), (5, 3), (3, 4), (5, 2), (2, 4)))
    assert left == {"aten.addmm.default": 1, "aten.addmm.out": 1}


def test_batches_of_products_are_added_in_place() -> None:
    left = simplified(lambda a, b, c, d: torch.bmm(a, b) + torch.bmm(c, d), several(*[(2, 3, 3)] * 4))
    assert left == {"aten.bmm.default": 1, "aten.baddbmm.out": 1}


def test_sums_and_products_of_elements_are_written_over_what_is_not_read_again() -> None:
    left = simplified(lambda a, b, c: (a * b + c * a) * c - b, several(*[(4, 4)] * 3))
    assert left == {
        "aten.mul.Tensor": 1,
        "aten.addcmul.out": 1,
        "aten.mul_.Tensor": 1,
        "aten.sub_.Tensor": 1,
    }


@pytest.mark.parametrize(
    "function",
    [
        lambda a, b: (lambda m: m * b + m)(a * b),
        lambda a, b: (lambda m: (m + b) * m.t())(a @ b),
        lambda a, b: (lambda m: m + m)(a @ b),
        lambda a, b: (lambda m: (m @ b) + m)(a @ b),
        lambda a, b: a.expand(4, 4) + a * b,
        lambda a, b: (a * b).t() + (b * a),
        lambda a, b: b - a * b,
        lambda a, b: (a * b)[:1] + (a * b),
        lambda a, b: (a * b).sum(0, keepdim=True) + a * b,
        lambda a, b: a * b + a * 0.5,
        lambda a, b: torch.add(a @ b, b @ a, alpha=3),
        lambda a, b: (lambda m: (m.view(2, 8) + 1, m * 2))(a @ b)[1],
    ],
)
def test_what_is_read_again_or_is_seen_through_a_view_is_not_written_over(function: Callable[..., Tensor]) -> None:
    simplified(function, several((4, 4), (4, 4)))


def test_a_sum_of_mixed_precisions_stays_a_sum() -> None:
    a, b = several((4, 4), (4, 4))
    assert simplified(lambda a, b: a.float() @ b.float() + a @ b, [a, b])["aten.add_.Tensor"] == 1


def test_copies_and_expansions_to_the_same_form_are_left_out() -> None:
    def function(x: Tensor) -> Tensor:
        y = x.clone().expand(3, 4).detach()
        return aten.copy.default(torch.exp(y), torch.sin(y).to(torch.float64))

    assert simplified(function, several((3, 4))) == {"aten.sin.default": 1}


def test_a_copy_with_other_strides_stays() -> None:
    left = simplified(lambda x: x.t().clone(memory_format=torch.contiguous_format).view(12), several((3, 4)))
    assert left["aten.clone.default"] == 1


def test_what_is_always_zero_is_not_added() -> None:
    a, b = several((3, 4), (3, 4))
    assert simplified(lambda a, z, b: (a + z) * b, [a, torch.zeros(3, 4).double(), b], zero=(1,)) == {
        "aten.mul.Tensor": 1
    }


def test_a_zero_that_makes_a_sum_larger_stays() -> None:
    left = simplified(lambda a, z: a + z, [*several((4,)), torch.zeros(3, 4).double()], zero=(1,))
    assert left["aten.add.Tensor"] == 1


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_slices_that_make_up_a_tensor_are_stacked(order: tuple[int, ...]) -> None:
    def function(*parts: Tensor) -> Tensor:
        a, b, c = (aten.select_backward.default(part, [5, 3, 2], 1, i) for part, i in zip(parts, order, strict=True))
        return (a + b) + c

    assert simplified(function, several((5, 2), (5, 2), (5, 2))) == {"aten.stack.default": 1}


@pytest.mark.parametrize("order", [(0, 0), (0, 2), (1, 2)])
def test_slices_that_leave_gaps_or_overlap_are_added(order: tuple[int, ...]) -> None:
    def function(*parts: Tensor) -> Tensor:
        a, b = (aten.select_backward.default(part, [5, 3, 2], 1, i) for part, i in zip(parts, order, strict=True))
        return a + b

    assert "aten.stack.default" not in simplified(function, several((5, 2), (5, 2)))


@pytest.mark.parametrize("place", [1, 2])
def test_a_stack_copied_to_another_dimension_is_stacked_along_it(place: int) -> None:
    def function(a: Tensor, b: Tensor) -> Tensor:
        return torch.stack([a, b]).movedim(0, place).clone(memory_format=torch.contiguous_format) * 2

    assert simplified(function, several((3, 4), (3, 4))) == {"aten.stack.default": 1, "aten.mul_.Tensor": 1}


def test_a_stack_that_is_copied_in_another_order_stays() -> None:
    def function(a: Tensor, b: Tensor) -> Tensor:
        return torch.stack([a, b]).permute(0, 2, 1).clone(memory_format=torch.contiguous_format) * 2

    assert simplified(function, several((3, 4), (3, 4)))["aten.clone.default"] == 1


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "elu": torch.nn.functional.elu,
    "gelu": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "hardswish": torch.nn.functional.hardswish,
    "leaky_relu": lambda x: torch.nn.functional.leaky_relu(x, 0.2),
    "sigmoid": torch.sigmoid,
    "silu": torch.nn.functional.silu,
    "softplus": torch.nn.functional.softplus,
    "tanh": torch.tanh,
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_slope_of_an_activation_is_evaluated_apart_from_what_it_multiplies(name: str) -> None:
    x, v = several((5, 3), (5, 3))
    graph = traced(lambda v, x: torch.func.vjp(ACTIVATIONS[name], x)[1](v)[0], [v, x])
    (expected,) = values(graph, [v, x])
    multiply_by_slopes(graph, free=1)
    given = graph.find_nodes(op="placeholder")[0]
    assert [str(node.target) for node in given.users] == ["aten.mul.Tensor"]
    torch.testing.assert_close(values(graph, [v, x]), [expected], rtol=1e-14, atol=1e-15)


def test_the_slope_where_a_direction_leads_is_left_as_it_is() -> None:
    graph = traced(lambda v: aten.tanh_backward.default(v, v), several((3,)))
    multiply_by_slopes(graph, free=1)
    assert counts(graph) == {"aten.tanh_backward.default": 1}


def zero_outputs(function: Callable[..., Any], inputs: list[Tensor]) -> list[bool]:
    (graph, _), _ = record(function, inputs)
    found = zeros(graph.nodes)
    return [output in found for output in list(graph.nodes)[-1].args[0]]


def test_zeros_are_found_through_what_is_linear_in_them() -> None:
    def function(x: Tensor) -> list[Tensor]:
        z = torch.zeros_like(x)
        return [z, -z.t(), z @ x, x * z, z + x, x * x, torch.exp(z)]

    assert zero_outputs(function, several((3, 3))) == [True, True, True, True, False, False, False]


def test_a_convolution_of_zeros_is_zero_without_a_bias() -> None:
    def function(x: Tensor, kernel: Tensor, bias: Tensor) -> list[Tensor]:
        z = torch.zeros_like(x)
        return [torch.conv2d(z, kernel), torch.conv2d(z, kernel, bias), torch.conv2d(x, torch.zeros_like(kernel))]

    assert zero_outputs(function, several((2, 3, 5, 5), (4, 3, 3, 3), (4,))) == [True, False, True]


def test_gradients_of_a_convolution_are_zero_if_a_factor_is() -> None:
    def function(g: Tensor, x: Tensor, kernel: Tensor) -> list[Tensor]:
        def gradients(g: Tensor, x: Tensor, kernel: Tensor) -> list[Tensor]:
            settings = ([4], [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [True, True, True])
            return list(aten.convolution_backward.default(g, x, kernel, *settings))

        return [
            *gradients(torch.zeros_like(g), x, kernel),
            *gradients(g, torch.zeros_like(x), kernel),
            *gradients(g, x, torch.zeros_like(kernel)),
        ]

    shapes = several((2, 4, 3, 3), (2, 3, 5, 5), (4, 3, 3, 3))
    assert zero_outputs(function, shapes) == [True, True, False, False, True, False, True, False, False]


def test_views_that_give_back_what_they_come_from_are_left_out() -> None:
    shapes = several((3, 4), (5, 3))
    assert simplified(lambda x, y: y @ x.t().t().view(2, 6).view(3, 4).transpose(0, 1).transpose(1, 0), shapes) == {
        "aten.mm.default": 1
    }


def test_a_view_of_a_view_is_taken_from_the_memory() -> None:
    left = simplified(lambda x: (x.view(2, 6).view(4, 3) + 1).sum(0), several((3, 4)))
    assert left == {"aten.view.default": 1, "aten.add.Tensor": 1, "aten.sum.dim_IntList": 1}


def test_views_in_another_order_stay() -> None:
    left = simplified(lambda x: x.t().reshape(3, 4).t().exp(), several((3, 4)))
    assert left["aten.t.default"] == 2


def test_memory_that_is_copied_over_is_not_filled() -> None:
    def function(x: Tensor) -> Tensor:
        return aten.copy.default(torch.zeros(4, 3, dtype=x.dtype), x.t()).exp()

    assert simplified(function, several((3, 4))) == {
        "aten.t.default": 1, "aten.clone.default": 1, "aten.exp.default": 1
    }  # fmt: skip


def test_a_copy_into_another_type_stays() -> None:
    left = simplified(lambda x: aten.copy.default(torch.zeros(3, dtype=torch.float32), x).double(), several((3,)))
    assert left["aten.copy.default"] == 1
