"""Linearised gradients: the products of the gradient itself, whatever a trace writes, repeats or specialises."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.func import functional_call, grad, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

import wsb_engine as wsb
from wsb_engine.analysis.monitor import Monitor
from wsb_engine.analysis.problem import pose
from wsb_engine.curvature.products.autodiff import AutodiffProduct
from wsb_engine.curvature.products.linearized import LinearizedProduct, NotLinearizableError
from wsb_engine.curvature.tracing.direct import called_directly
from wsb_engine.curvature.tracing.linearize import (
    PartialEvaluation,
    Product,
    ShapeFollowsValuesError,
    WrittenInPlaceError,
    linearize,
)
from wsb_engine.curvature.tracing.record import Recording
from wsb_engine.model import Tensors


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.classify = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classify(self.encoder(x).mean(dim=1))
        return logits


class Operators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))


def encoder_gradient() -> tuple[Any, Tensors, Tensors]:
    torch.manual_seed(0)
    module = Encoder().double().eval()
    x, y = torch.randn(5, 4, 8, dtype=torch.float64), torch.randint(0, 3, (5,))
    point = {name: tensor.detach() for name, tensor in module.named_parameters()}

    def loss(parameters: Tensors) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return nn.functional.cross_entropy(functional_call(module, dict(parameters), (x,)), y)

    return grad(loss), point, {name: torch.randn_like(tensor) for name, tensor in point.items()}


def derivative(function: Callable[[Tensors], Tensors], point: Tensors) -> Product:
    return linearize(lambda here, _: function(here), point, ())(())


def test_products_of_a_linearised_gradient_are_those_of_the_gradient() -> None:
    gradient, point, v = encoder_gradient()
    expected = jvp(gradient, (point,), (v,))[1]
    found = derivative(gradient, point)(v)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-12, atol=1e-14)


def test_what_does_not_depend_on_the_direction_is_evaluated_once() -> None:
    gradient, point, v = encoder_gradient()
    product = derivative(gradient, point)
    with Operators() as seen:
        product(v)
    primal = {"native_layer_norm", "_safe_softmax", "softmax", "gelu", "logsumexp", "_log_softmax"}
    assert seen.counts["mm"] > 0
    assert not primal & seen.counts.keys()


def test_a_product_is_linear_and_can_be_repeated() -> None:
    gradient, point, v = encoder_gradient()
    product = derivative(gradient, point)
    first, again = product(v), product(v)
    doubled = product({name: 2 * tensor for name, tensor in v.items()})
    for name in v:
        assert torch.equal(first[name], again[name])
        torch.testing.assert_close(doubled[name], 2 * first[name], rtol=1e-12, atol=0)


def test_a_factor_that_is_written_over_later_counts_as_it_was() -> None:
    def function(point: Tensors) -> Tensors:
        factor = torch.arange(3.0)
        product = factor * point["a"]
        factor.add_(1)
        return {"a": product * factor}

    product = derivative(function, {"a": torch.ones(3)})
    assert product({"a": torch.ones(3)})["a"].tolist() == [0.0, 2.0, 6.0]


def graph_that_writes(*, before: bool) -> Recording:
    """v · c, and c written over before or after that."""
    graph = fx.Graph()
    v = graph.placeholder("v")
    c = graph.call_function(torch.ops.aten.arange.default, (3,))
    if before:
        graph.call_function(torch.ops.aten.add_.Tensor, (c, 1))
    product = graph.call_function(torch.ops.aten.mul.Tensor, (v, c))
    if not before:
        graph.call_function(torch.ops.aten.add_.Tensor, (c, 1))
    graph.output((product,))
    return Recording(graph, nn.Module())


def test_a_write_in_the_trace_counts_for_what_comes_after_it() -> None:
    partially = PartialEvaluation(graph_that_writes(before=True), free=1)
    rest = called_directly(partially.rest)
    assert rest(torch.ones(3), *partially.constants(()))[0].tolist() == [1.0, 2.0, 3.0]


def test_a_write_in_the_trace_over_what_was_read_before_is_refused() -> None:
    partially = PartialEvaluation(graph_that_writes(before=False), free=1)
    with pytest.raises(WrittenInPlaceError):
        partially.constants(())


def test_a_write_into_what_depends_on_the_direction_is_refused() -> None:
    graph = fx.Graph()
    v = graph.placeholder("v")
    graph.output((graph.call_function(torch.ops.aten.add_.Tensor, (v, 1)),))
    with pytest.raises(WrittenInPlaceError):
        PartialEvaluation(Recording(graph, nn.Module()), free=1)


def test_writing_before_anything_depends_on_the_direction_is_followed() -> None:
    def function(point: Tensors) -> Tensors:
        factor = torch.arange(3.0)
        factor.add_(1)
        return {"a": factor * point["a"] ** 2}

    product = derivative(function, {"a": torch.ones(3)})
    assert product({"a": torch.ones(3)})["a"].tolist() == [2.0, 4.0, 6.0]


def test_one_trace_serves_all_data_of_its_shapes() -> None:
    random = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 5, 3, generator=random, dtype=torch.float64)
    point = {"a": torch.randn(3, generator=random, dtype=torch.float64)}
    traces: list[int] = []

    def function(here: Tensors, x: Tensor) -> Tensors:
        traces.append(1)
        return {"a": torch.tanh(x @ here["a"]) @ x}

    at = linearize(function, point, first)
    products, count = [at(first), at(second), at(first)], len(traces)
    for x, product in zip((first, second, first), products, strict=True):
        expected = jvp(lambda here, x=x: function(here, x), (point,), (point,))[1]
        torch.testing.assert_close(product(point)["a"], expected["a"], rtol=1e-14, atol=0)
    assert count == 1


SHAPED_BY_VALUES: dict[str, Callable[[Tensor], int]] = {
    "nonzero": lambda x: (x > 0).nonzero().shape[0],
    "masked_select": lambda x: x.masked_select(x > 0).shape[0],
    "index": lambda x: x[x > 0].shape[0],
    "unique": lambda x: x.sign().unique().shape[0],
    "unique_inverse": lambda x: x.sign().unique(return_inverse=True)[0].shape[0],
    "repeat_interleave": lambda x: x.repeat_interleave((x > 0).long()).shape[0],
}


@pytest.mark.parametrize("count", SHAPED_BY_VALUES.values(), ids=SHAPED_BY_VALUES)
def test_data_of_other_shapes_inside_is_refused_even_where_only_a_number_is_left_of_them(
    count: Callable[[Tensor], int],
) -> None:
    def function(here: Tensors, x: Tensor) -> Tensors:
        return {"a": torch.sin(here["a"]) * count(x)}

    point = {"a": torch.ones(2)}
    at = linearize(function, point, torch.tensor([1.0, -1.0, 1.0, -1.0]))
    same = torch.tensor([-1.0, 1.0, -1.0, 1.0])
    assert torch.equal(at(same)(point)["a"], jvp(lambda here: function(here, same), (point,), (point,))[1]["a"])
    with pytest.raises(ShapeFollowsValuesError):
        at(torch.tensor([1.0, 1.0, 1.0, 1.0]))


class CountsValues(nn.Module):
    """A classifier that treats samples with a positive first feature apart."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(x)
        positive = (x[:, 0] > 0).nonzero().flatten()
        return logits.tanh().index_add(0, positive, torch.sin(logits[positive]))


def test_a_model_with_shapes_that_follow_values_is_multiplied_from_scratch_or_right() -> None:
    torch.manual_seed(0)
    options = wsb.Options(dtype="float64", device="cpu")
    x = np.random.default_rng(0).standard_normal((12, 3))
    x[:, 0] = np.where(np.arange(12) < 3, 1, -1)
    batch = wsb.Batch(x, np.arange(12) % 2)
    model = wsb.from_module(CountsValues().double())
    objective = pose(model, batch, options, Monitor(options, None, 0.0)).objective
    v = torch.randn(objective.parameters, 1, dtype=torch.float64)
    with pytest.raises(NotLinearizableError):
        LinearizedProduct(objective, samples=4)(v)
    torch.testing.assert_close(LinearizedProduct(objective, samples=12)(v), AutodiffProduct(objective)(v))


class Layouts(TorchDispatchMode):
    """Strides of the channels of what pools read."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.overloadpacket.__name__.startswith("avg_pool2d"):
            self.seen += [value.stride(1) for value in args if isinstance(value, Tensor)]
        return function(*args, **(kwargs or {}))


def test_pools_of_a_product_read_channels_last_from_one_channel_on() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(2, 3, 3), nn.Tanh(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(3 * 2 * 2, 3),
    )  # fmt: skip
    options = wsb.Options(dtype="float64", device="cpu")
    batch = wsb.Batch(np.random.default_rng(0).random((5, 1, 14, 14)), np.arange(5) % 3)
    objective = pose(wsb.from_module(net.double()), batch, options, Monitor(options, None, 0.0)).objective
    product = LinearizedProduct(objective)
    v = torch.randn(objective.parameters, 1, dtype=torch.float64)
    with Layouts() as layouts:
        found = product(v)
        layouts.seen.clear()
        product(v)
    assert layouts.seen == [1] * 6  # two pools forward, and two backward with the gradient and the input
    torch.testing.assert_close(found, AutodiffProduct(objective)(v), rtol=1e-12, atol=1e-14)


def test_an_infinite_slope_behind_a_dead_unit_does_not_count() -> None:
    x = torch.tensor([[1.0, 2.0], [-1.0, -3.0], [2.0, 1.0]], dtype=torch.float64)
    point = {"w": torch.tensor([[1.0, 0.5], [0.3, 2.0]], dtype=torch.float64)}
    direction = {"w": torch.tensor([[0.3, -1.0], [2.0, 0.7]], dtype=torch.float64)}

    def loss(parameters: Tensors, data: Tensor) -> Tensor:
        h = torch.relu(data @ parameters["w"])
        return (h / (h * h).sum(1, keepdim=True).sqrt().clamp(min=1e-3)).pow(3).sum()

    expected = jvp(lambda at: grad(loss)(at, x), (point,), (direction,))[1]["w"]
    assert bool(expected.isfinite().all())
    torch.testing.assert_close(linearize(grad(loss), point, x)(x)(direction)["w"], expected, rtol=1e-12, atol=1e-12)
