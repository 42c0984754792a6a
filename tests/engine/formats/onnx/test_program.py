"""The graph as a function: under transforms, for any batch, with subgraphs and functions, within limits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper
from onnx.helper import make_node as node
from support.forms import full

from wsb_engine import ModelError, load_model
from wsb_engine.curvature.tracing.smoothness import nonsmooth_operators
from wsb_engine.formats.graph.limits import LIMITS
from wsb_engine.formats.graph.program import rescaled
from wsb_engine.formats.onnx import build as building

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.*is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning"),  # torch.func.linearize
]
X = np.random.default_rng(5).normal(size=(6, 4)).astype(np.float32)


def _branch(name: str, nodes: list[NodeProto], output: str) -> Any:
    return helper.make_graph(nodes, name, [], [ValueInfoProto(name=output)])


def _shape_driven(build: Any, weights: Any) -> bytes:
    """A network that computes a target shape from its input, as exporters write it."""
    nodes = [
        node("Gemm", ["x", "w"], ["h"]),
        node("Shape", ["h"], ["s"]),
        node("Gather", ["s", "zero"], ["n"]),
        node("Unsqueeze", ["n", "axis"], ["n1"]),
        node("Concat", ["n1", "rest"], ["target"], axis=0),
        node("Reshape", ["h", "target"], ["r"]),
        node("Tanh", ["r"], ["t"]),
        node("ReduceMean", ["t"], ["m"], axes=[1], keepdims=0),
        node("MatMul", ["m", "v"], ["z"]),
    ]
    constants = {"zero": np.array(0), "axis": np.array([0]), "rest": np.array([2, 3])}
    return build.bytes(nodes, weights(w=(4, 6), v=(3, 3)) | constants)  # type: ignore[no-any-return]


def test_vmap_jvp_and_linearize_agree_with_double_backward(build: Any, weights: Any) -> None:
    model = load_model(_shape_driven(build, weights)).resolve()
    parameters = {name: value.double() for name, value in model.parameters.items()}
    y = torch.arange(6) % 3

    def loss(values: dict[str, torch.Tensor]) -> torch.Tensor:
        z = model.function(values, {"x": torch.from_numpy(X).double()})
        return torch.nn.functional.cross_entropy(z, y)

    gradient = torch.func.grad(loss)
    generator = torch.Generator().manual_seed(0)
    directions = {
        name: torch.randn(4, *value.shape, generator=generator, dtype=torch.float64)
        for name, value in parameters.items()
    }
    products = torch.func.vmap(lambda v: torch.func.jvp(gradient, (parameters,), (v,))[1])(directions)
    _, linear = torch.func.linearize(gradient, parameters)
    for index in range(4):
        direction = tuple(value[index] for value in directions.values())
        _, expected = torch.autograd.functional.hvp(
            lambda *values: loss(dict(zip(parameters, values, strict=True))), tuple(parameters.values()), direction
        )
        mapped = linear(dict(zip(parameters, direction, strict=True)))
        for name, value in zip(parameters, expected, strict=True):
            torch.testing.assert_close(products[name][index], value)
            torch.testing.assert_close(mapped[name], value)


def test_the_function_computes_in_the_dtype_of_its_parameters(build: Any, weights: Any) -> None:
    model = load_model(_shape_driven(build, weights)).resolve()
    for dtype in (torch.float32, torch.float64):
        parameters = {name: value.to(dtype) for name, value in model.parameters.items()}
        assert model.function(parameters, {"x": torch.from_numpy(X).to(dtype)}).dtype == dtype


def test_a_missing_input_is_named(build: Any, weights: Any) -> None:
    model = load_model(_shape_driven(build, weights)).resolve()
    with pytest.raises(ModelError, match="'x'") as caught:
        model.function(model.parameters, {})
    assert caught.value.code == "missing_input"


FIXED: dict[str, tuple[list[NodeProto], dict[str, Any], list[int]]] = {
    "flattened to the batch size": ([node("Reshape", ["x", "s"], ["f"])], {"s": np.array([2, 4])}, [2, 2, 2]),
    "flattened with a free size": ([node("Reshape", ["x", "s"], ["f"])], {"s": np.array([2, -1])}, [2, 2, 2]),
    "samples moved to the second axis and back": (
        [
            node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
            node("Reshape", ["t", "s"], ["u"]),
            node("Transpose", ["u"], ["v0"], perm=[1, 0]),
            node("Reshape", ["v0", "r"], ["f"]),
        ],
        {"s": np.array([2, 4]), "r": np.array([2, 4])},
        [2, 2, 2],
    ),
    "expanded to the batch size": (
        [
            node("Expand", ["token", "s"], ["t"]),
            node("Concat", ["x", "t"], ["f"], axis=1),
        ],
        {"token": np.float32([[0.5, -0.5]]), "s": np.array([2, 2])},
        [2, 2],
    ),
}


@pytest.mark.parametrize(("nodes", "extra", "shape"), FIXED.values(), ids=FIXED.keys())
@pytest.mark.parametrize("samples", [2, 6, 7])
def test_a_graph_that_is_fixed_to_a_batch_size_runs_on_any(
    nodes: list[NodeProto], extra: Any, shape: list[int], samples: int, build: Any, weights: Any, logits: Any
) -> None:
    data = build.bytes([*nodes, node("Gemm", ["f", "w"], ["z"])], weights(w=(4, 3)) | extra, inputs={"x": shape})
    model = load_model(data).resolve()
    x = np.random.default_rng(0).normal(size=(samples, *shape[1:])).astype(np.float32)
    z = logits(model, x)
    assert z.shape == (samples, 3)
    assert model.reference is not None
    np.testing.assert_allclose(model.reference({"x": x}), z, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("source", "target", "actual", "expected"),
    [
        ((2, 3, 4), (2, 12), (6, 3, 4), (6, 12)),
        ((2, 12), (2, 3, 4), (6, 12), (6, 3, 4)),
        ((3, 2, 4), (3, 4, 2), (3, 6, 4), (3, 12, 2)),
        ((2, 3, 4), (6, 4), (10, 3, 4), (30, 4)),
        ((6, 4), (2, 3, 4), (30, 4), (10, 3, 4)),
        ((1, 5), (1, 1, 5), (7, 5), (7, 1, 5)),
        ((3, 4), (12,), (3, 4), None),
        ((2, 3), (3, 2), (4, 9), None),
    ],
)
def test_the_samples_are_found_again_in_a_reshape_target(source: Any, target: Any, actual: Any, expected: Any) -> None:
    assert rescaled(source, target, actual) == expected


def _function(name: str, inputs: list[str], outputs: list[str], nodes: list[NodeProto], *attributes: str) -> Any:
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    return helper.make_function("local", name, inputs, outputs, nodes, imports, list(attributes))


def test_local_functions_are_inlined_with_their_attributes(
    build: Any, weights: Any, logits: Any, mlp_logits: Any
) -> None:
    scaled = node("Gemm", ["a", "k", "c"], ["r"])
    reference = scaled.attribute.add(name="transB", type=2)
    reference.ref_attr_name = "turned"
    functions = [
        _function("Layer", ["a", "k", "c"], ["r"], [scaled], "turned"),
        _function(
            "Block",
            ["a", "k", "c"],
            ["out"],
            [node("Layer", ["a", "k", "c"], ["h"], domain="local", turned=1), node("Tanh", ["h"], ["out"])],
        ),
    ]
    nodes = [
        node("Block", ["x", "w1", "b1"], ["h"], domain="local"),
        node("Layer", ["h", "w2", ""], ["z"], domain="local", turned=0),
    ]
    values = weights(w1=(5, 4), b1=(5,), w2=(5, 3))
    model = load_model(build.bytes(nodes, values, functions=functions, domains={"local": 1})).resolve()
    assert model.mlp is not None
    expected = np.tanh(X @ values["w1"].T + values["b1"]) @ values["w2"]
    np.testing.assert_allclose(logits(model, X), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mlp_logits(model, X), logits(model, X))
    assert model.reference is not None
    np.testing.assert_allclose(model.reference({"x": X}), expected, rtol=1e-5, atol=1e-5)


def test_a_function_that_calls_itself_is_refused(build: Any, weights: Any) -> None:
    endless = _function("F", ["a"], ["r"], [node("F", ["a"], ["r"], domain="local")])
    nodes = [node("F", ["x"], ["y"], domain="local"), node("Gemm", ["y", "w"], ["z"])]
    with pytest.raises(ModelError) as caught:
        load_model(build.bytes(nodes, weights(w=(4, 3)), functions=[endless], domains={"local": 1}))
    assert caught.value.code == "model_too_complex"


@pytest.mark.parametrize("nodes_allowed", [1_000, full(LIMITS.nodes)])
def test_functions_that_multiply_without_end_are_refused(
    nodes_allowed: int, build: Any, weights: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "LIMITS", replace(LIMITS, nodes=nodes_allowed))
    functions = [_function("F0", ["a"], ["r"], [node("Neg", ["a"], ["r"])])]
    for level in range(1, 12):
        calls = [node(f"F{level - 1}", ["a"], [f"r{i}"], domain="local") for i in range(10)]
        functions.append(_function(f"F{level}", ["a"], ["r9"], calls))
    nodes = [node("F11", ["x"], ["y"], domain="local"), node("Gemm", ["y", "w"], ["z"])]
    with pytest.raises(ModelError) as caught:
        load_model(build.bytes(nodes, weights(w=(4, 3)), functions=functions, domains={"local": 1}))
    assert caught.value.code == "model_too_complex"


def test_the_branch_of_an_if_is_settled_by_shapes(build: Any, weights: Any, logits: Any) -> None:
    nodes = [
        node("Gemm", ["x", "w"], ["h"]),
        node("Shape", ["h"], ["s"]),
        node("Gather", ["s", "one"], ["width"]),
        node("Equal", ["width", "five"], ["c"]),
        node(
            "If",
            ["c"],
            ["a"],
            then_branch=_branch("yes", [node("Tanh", ["h"], ["t"])], "t"),
            else_branch=_branch("no", [node("Relu", ["h"], ["t"])], "t"),
        ),
        node("MatMul", ["a", "v"], ["z"]),
    ]
    values = weights(w=(4, 5), v=(5, 3))
    data = build.bytes(nodes, values | {"one": np.array(1), "five": np.array(5)})
    model = load_model(data).resolve()
    assert model.mlp is not None
    np.testing.assert_allclose(logits(model, X), np.tanh(X @ values["w"]) @ values["v"], rtol=1e-5, atol=1e-5)


def test_weights_within_a_branch_are_found(build: Any, weights: Any) -> None:
    values = weights(w=(4, 3))
    branch = _branch("yes", [node("MatMul", ["x", "inner"], ["t"])], "t")
    branch.initializer.append(numpy_helper.from_array(values["w"], "inner"))
    nodes = [node("If", ["c"], ["z"], then_branch=branch, else_branch=branch)]
    model = load_model(build.bytes(nodes, {"c": np.array(True)})).resolve()
    assert [value.shape for value in model.parameters.values()] == [(4, 3)]


def test_a_branch_that_depends_on_values_is_refused(build: Any, weights: Any) -> None:
    nodes = [
        node("ReduceSum", ["x"], ["s"], keepdims=0),
        node("Greater", ["s", "zero"], ["c"]),
        node(
            "If",
            ["c"],
            ["a"],
            then_branch=_branch("yes", [node("Tanh", ["x"], ["t"])], "t"),
            else_branch=_branch("no", [node("Relu", ["x"], ["t"])], "t"),
        ),
        node("Gemm", ["a", "w"], ["z"]),
    ]
    with pytest.raises(ModelError) as caught:
        load_model(build.bytes(nodes, weights(w=(4, 3)) | {"zero": np.float32(0)}))
    assert caught.value.code == "data_dependent_control_flow"


def test_a_shape_that_depends_on_values_is_refused(build: Any, weights: Any) -> None:
    nodes = [
        node("Gemm", ["x", "w"], ["h"]),
        node("ReduceMax", ["h"], ["m"], keepdims=0),
        node("Cast", ["m"], ["i"], to=TensorProto.INT64),
        node("Reshape", ["i", "one"], ["s"]),
        node("Expand", ["h", "s"], ["z"]),
    ]
    classifier = load_model(build.bytes(nodes, weights(w=(4, 3)) | {"one": np.array([1])}))
    with pytest.raises(ModelError) as caught:
        classifier.resolve(head="logits").function(classifier.parameters, {"x": torch.from_numpy(X)})
    assert caught.value.code == "data_dependent_shape"


HUGE: dict[str, tuple[list[NodeProto], dict[str, Any]]] = {
    "expanded": ([node("Expand", ["h", "s"], ["y"])], {"s": np.array([100_000, 100_000, 6, 3])}),
    "tiled": ([node("Tile", ["h", "s"], ["y"])], {"s": np.array([100_000, 100_000])}),
    "padded": ([node("Pad", ["h", "s"], ["y"])], {"s": np.array([0, 0, 0, 10**10])}),
    "a product": ([node("MatMul", ["c", "r"], ["y"])], {}),
    "a range": ([node("Range", ["zero", "s", "one"], ["y"])], {"s": np.array(10**11)}),
    "one-hot": ([node("OneHot", ["i", "s", "v"], ["y"])], {"s": np.array(10**11), "i": np.array([1])}),
    "resized": ([node("Resize", ["h", "", "s"], ["y"])], {"s": np.float32([1, 1e10])}),
}


@pytest.mark.parametrize(("nodes", "extra"), HUGE.values(), ids=HUGE.keys())
def test_an_operator_that_would_make_a_huge_tensor_is_refused_before_it_runs(
    nodes: list[NodeProto], extra: dict[str, Any], build: Any, weights: Any
) -> None:
    constants = {
        "zero": np.array(0),
        "one": np.array(1),
        "v": np.array([0, 1]),
        "c": np.ones((300_000, 1), np.float32),
        "r": np.ones((1, 300_000), np.float32),
    }
    rest = [
        node("Gemm", ["x", "w"], ["h"]),
        *nodes,
        node("Cast", ["y"], ["f"], to=1),
        node("ReduceSum", ["f"], ["t"], keepdims=0),
        node("Add", ["h", "t"], ["z"]),
    ]
    classifier = load_model(build.bytes(rest, weights(w=(4, 3)) | constants | extra, opset=18))
    with pytest.raises(ModelError) as caught:
        classifier.resolve(head="logits").function(classifier.parameters, {"x": torch.from_numpy(X)})
    assert caught.value.code == "tensor_too_large"


NONSMOOTH: dict[str, tuple[list[NodeProto], dict[str, Any], tuple[str, ...]]] = {
    "tanh": ([node("Tanh", ["h"], ["a"])], {}, ()),
    "relu": ([node("Relu", ["h"], ["a"])], {}, ("Relu",)),
    "a kink in the preprocessing": (
        [node("Relu", ["x"], ["p"]), node("MatMul", ["p", "u"], ["q"]), node("Add", ["h", "q"], ["a"])],
        {"u": np.ones((4, 5), np.float32)},
        (),
    ),
    "a switch by values": (
        [node("Greater", ["h", "zero"], ["c"]), node("Where", ["c", "h", "zero"], ["a"])],
        {"zero": np.float32(0)},
        ("Greater", "Where"),
    ),
    "a choice by a fixed mask": (
        [node("Where", ["mask", "h", "zero"], ["a"])],
        {"mask": np.array([True, False, True, True, False]), "zero": np.float32(0)},
        (),
    ),
    "a softplus with a switch far out": (
        [
            node("Softplus", ["h"], ["s"]),
            node("Greater", ["h", "t"], ["c"]),
            node("Where", ["c", "h", "s"], ["a0"]),
            node("Mul", ["a0", "a0"], ["a"]),
        ],
        {"t": np.float32(20)},
        (),
    ),
    "rounding": ([node("Cast", ["h"], ["i"], to=7), node("Cast", ["i"], ["a"], to=1)], {}, ("Cast",)),
}


@pytest.mark.parametrize(("nodes", "extra", "names"), NONSMOOTH.values(), ids=NONSMOOTH.keys())
def test_operators_with_a_kink_in_the_parameters_are_reported(
    nodes: list[NodeProto], extra: Any, names: tuple[str, ...], build: Any, weights: Any
) -> None:
    rest = [node("Gemm", ["x", "w"], ["h"]), *nodes, node("MatMul", ["a", "v"], ["z"])]
    model = load_model(build.bytes(rest, weights(w=(4, 5), v=(5, 3)) | extra)).resolve()
    inputs = {"x": torch.from_numpy(X)}
    assert nonsmooth_operators(model.function, model.parameters, inputs) == names


def test_a_recurrent_layer_over_endless_time_is_refused(build: Any, weights: Any) -> None:
    nodes = [
        node("Expand", ["x", "s"], ["y"]),
        node("RNN", ["y", "w", "r"], ["", "h"], hidden_size=3),
        node("Squeeze", ["h", "zero"], ["q"]),
        node("MatMul", ["q", "v"], ["z"]),
    ]
    values = weights(w=(1, 3, 4), r=(1, 3, 3), v=(3, 3))
    constants = {"s": np.array([10**6, 1, 1]), "zero": np.array([0])}
    classifier = load_model(build.bytes(nodes, values | constants))
    with pytest.raises(ModelError) as caught:
        classifier.resolve(head="logits").function(classifier.parameters, {"x": torch.from_numpy(X)})
    assert caught.value.code == "model_too_complex"
