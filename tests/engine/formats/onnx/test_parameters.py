"""Which tensors of a file are parameters: by the slot that consumes them, wherever they are stored."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper
from onnx.helper import make_node as node

from wsb_engine import load_model

GEMM = [node("Gemm", ["x", "w", "b"], ["h"])]
OUT = [node("MatMul", ["a", "v"], ["z"])]
SHAPES = {"w": (4, 5), "b": (5,), "v": (5, 3)}


def _names(data: bytes) -> list[str]:
    return list(load_model(data).resolve(head="logits").parameters)


def _found(build: Any, weights: Any, nodes: list[NodeProto], extra: dict[str, Any], **options: Any) -> list[str]:
    return _names(build.bytes([*GEMM, *nodes, *OUT], weights(**SHAPES) | extra, **options))


ROW = np.float32([0.5, 1.5, -0.5, 2.0, 1.0])
SQUARE = np.arange(25, dtype=np.float32).reshape(5, 5)
CASES: dict[str, tuple[list[NodeProto], dict[str, Any], list[str]]] = {
    "a layer norm's scale and shift": (
        [node("LayerNormalization", ["h", "g", "s"], ["a"])],
        {"g": ROW, "s": ROW},
        ["g", "s"],
    ),
    "a batch norm's scale and shift, not its running statistics": (
        [node("BatchNormalization", ["h", "g", "s", "mean", "var"], ["a"])],
        {"g": ROW, "s": ROW, "mean": ROW, "var": ROW**2},
        ["g", "s"],
    ),
    "a written-out layer norm's scale and shift": (
        [
            node("ReduceMean", ["h"], ["m"], axes=[-1]),
            node("Sub", ["h", "m"], ["c"]),
            node("Pow", ["c", "two"], ["c2"]),
            node("ReduceMean", ["c2"], ["v2"], axes=[-1]),
            node("Add", ["v2", "eps"], ["ve"]),
            node("Sqrt", ["ve"], ["sd"]),
            node("Div", ["c", "sd"], ["n"]),
            node("Mul", ["n", "g"], ["ng"]),
            node("Add", ["ng", "s"], ["a"]),
        ],
        {"two": np.float32(2), "eps": np.float32(1e-5), "g": np.ones(5, np.float32), "s": np.zeros(5, np.float32)},
        ["g", "s"],
    ),
    "constants of a written-out activation": (
        [node("Mul", ["h", "half"], ["i"]), node("Add", ["i", "one"], ["a"])],
        {"half": np.float32(0.5), "one": np.ones((1, 1), np.float32)},
        [],
    ),
    "a scale of a layer's result": ([node("Mul", ["h", "g"], ["a"])], {"g": ROW}, ["g"]),
    "a parametric ReLU's slope": ([node("PRelu", ["h", "g"], ["a"])], {"g": ROW}, ["g"]),
    "a weight that the graph transposes": (
        [node("Transpose", ["q"], ["qt"]), node("MatMul", ["h", "qt"], ["a"])],
        {"q": SQUARE},
        ["q"],
    ),
    "both factors of a weight norm": (
        [
            node("ReduceL2", ["q"], ["norm"], axes=[0]),
            node("Div", ["q", "norm"], ["unit"]),
            node("Mul", ["unit", "g"], ["qn"]),
            node("MatMul", ["h", "qn"], ["a"]),
        ],
        {"q": SQUARE, "g": ROW.reshape(1, 5)},
        ["q", "g"],
    ),
    "a mask before a softmax": (
        [node("Add", ["h", "mask"], ["m"]), node("Softmax", ["m"], ["a"])],
        {"mask": np.float32([0, -1e9, 0, -np.inf, 0])},
        [],
    ),
    "a weight of any size, one included": (
        [
            node("Reshape", ["h", "s"], ["i"]),
            node("Conv", ["i", "k"], ["j"]),
            node("Reshape", ["j", "t"], ["a"]),
        ],
        {"s": np.array([-1, 1, 5]), "k": np.float32([[[2.0]]]), "t": np.array([-1, 5])},
        ["k"],
    ),
}


@pytest.mark.parametrize(("nodes", "extra", "names"), CASES.values(), ids=CASES.keys())
def test_parameters_are_identified_by_the_slot_that_consumes_them(
    nodes: list[NodeProto], extra: dict[str, Any], names: list[str], build: Any, weights: Any
) -> None:
    if "mask" in extra:  # directly after a layer a shift is a bias; a mask comes after a product of activations
        nodes = [node("Tanh", ["h"], ["t"]), node("Add", ["t", "mask"], ["m"]), *nodes[1:]]
    assert sorted(_found(build, weights, nodes, extra)) == sorted(["w", "b", "v", *names])


def test_preprocessing_of_the_inputs_is_not_trained(build: Any, weights: Any) -> None:
    nodes = [
        node("Sub", ["x", "mean"], ["c"]),
        node("Mul", ["c", "scale"], ["s"]),
        node("Add", ["s", "shift"], ["t"]),
        node("Gemm", ["t", "w"], ["z"]),
    ]
    extra = {name: np.float32([1, 2, 3, 4]) for name in ("mean", "scale", "shift")}
    assert _names(build.bytes(nodes, weights(w=(4, 3)) | extra)) == ["w"]


def test_an_embedding_table_is_a_parameter(build: Any, weights: Any) -> None:
    nodes = [
        node("Gather", ["table", "x"], ["e"]),
        node("ReduceMean", ["e"], ["m"], axes=[1], keepdims=0),
        node("Gemm", ["m", "w"], ["z"]),
    ]
    data = build.bytes(nodes, weights(table=(9, 4), w=(4, 3)), inputs={"x": ["n", 6]}, dtype=TensorProto.INT64)
    assert _names(data) == ["table", "w"]


def test_a_learned_token_put_beside_computed_ones_is_a_parameter(build: Any, weights: Any) -> None:
    nodes = [
        node("MatMul", ["x", "w"], ["e"]),
        node("Shape", ["x"], ["shape"]),
        node("Gather", ["shape", "first"], ["n"]),
        node("Concat", ["n", "rest"], ["target"], axis=0),
        node("Expand", ["token", "target"], ["t"]),
        node("Concat", ["t", "e"], ["c"], axis=1),
        node("ReduceMean", ["c"], ["m"], axes=[1], keepdims=0),
        node("Gemm", ["m", "v"], ["z"]),
    ]
    values = weights(w=(4, 5), token=(1, 1, 5), v=(5, 3))
    data = build.bytes(nodes, values | {"first": np.array([0]), "rest": np.array([1, 5])}, inputs={"x": ["n", 2, 4]})
    assert _names(data) == ["w", "token", "v"]


def test_weights_count_wherever_they_are_stored(build: Any, weights: Any) -> None:
    stored = weights(w=(4, 5), v=(5, 3))
    nodes = [
        node("Constant", [], ["w"], value=numpy_helper.from_array(stored["w"])),
        node("ConstantOfShape", ["five"], ["b"], value=helper.make_tensor("v", TensorProto.FLOAT, [1], [0.25])),
        node("Gemm", ["x", "w", "b"], ["h"]),
        node("Tanh", ["h"], ["a"]),
        *OUT,
    ]
    model = load_model(build.bytes(nodes, {"v": stored["v"], "five": np.array([5])})).resolve()
    assert sorted(model.parameters) == ["b", "v", "w"]
    assert model.mlp is not None


def test_a_tensor_used_twice_is_one_parameter_and_reported_as_tied(build: Any, weights: Any) -> None:
    nodes = [node("Gemm", ["x", "w"], ["h"]), node("Tanh", ["h"], ["a"]), node("Gemm", ["a", "w"], ["z"])]
    model = load_model(build.bytes(nodes, weights(w=(4, 4)))).resolve()
    assert list(model.parameters) == ["w"]
    assert model.tied == ("w",)
    assert model.mlp is None


def test_parameters_keep_the_files_dtype_and_order(build: Any, weights: Any) -> None:
    values = weights(v=(5, 3), b=(5,), w=(4, 5), dtype="float64")
    data = build.bytes([*GEMM, node("Tanh", ["h"], ["a"]), *OUT], values, dtype=TensorProto.DOUBLE)
    classifier = load_model(data)
    assert list(classifier.parameters) == ["v", "b", "w"]
    assert {str(value.dtype) for value in classifier.parameters.values()} == {"torch.float64"}


def test_parameters_that_the_chosen_output_does_not_need_are_left_out(build: Any, weights: Any) -> None:
    nodes = [*GEMM, node("Tanh", ["h"], ["a"]), *OUT, node("MatMul", ["a", "u"], ["other"])]
    classifier = load_model(build.bytes(nodes, weights(**SHAPES, u=(5, 2)), outputs=("z", "other")))
    assert "u" in classifier.parameters
    assert "u" not in classifier.resolve(output="z").parameters
