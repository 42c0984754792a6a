"""Broken and hostile ONNX files: each ends in an error with a code, before memory is taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.helper import make_node as node
from support.forms import thinned

from wsb_engine import ModelError, load_model
from wsb_engine.formats.onnx import proto

W = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
GEMM = [node("Gemm", ["x", "w"], ["z"])]


def _edited(build: Any, change: Callable[[onnx.ModelProto], object], nodes: Any = GEMM, **options: Any) -> bytes:
    model = build.model(nodes, {"w": W}, **options)
    change(model)
    return model.SerializeToString()  # type: ignore[no-any-return]


def _code(data: bytes) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(data).resolve()
    assert caught.value.advice
    return caught.value.code


def _external(tensor: TensorProto, location: str = "../../etc/passwd") -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)


def _nested(levels: int) -> onnx.GraphProto:
    leaf = helper.make_graph([node("Identity", ["x"], ["y"])], "leaf", [], [onnx.ValueInfoProto(name="y")])
    graph = leaf
    for level in range(levels):
        inner = node("If", ["x"], [f"y{level}"], then_branch=graph, else_branch=leaf)
        graph = helper.make_graph([inner], f"g{level}", [], [onnx.ValueInfoProto(name=f"y{level}")])
    return graph


def _swap_weight(**fields: Any) -> Callable[[onnx.ModelProto], object]:
    def change(model: onnx.ModelProto) -> None:
        tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, **fields)
        model.graph.initializer[0].CopyFrom(tensor)

    return change


CHANGES: dict[str, tuple[Callable[[onnx.ModelProto], object], str]] = {
    "no graph": (lambda m: m.ClearField("graph"), "model_invalid"),
    "a cycle": (lambda m: m.graph.node.insert(0, node("Identity", ["z"], ["y"])), "model_invalid"),
    "an unknown input": (lambda m: m.graph.node.append(node("Identity", ["nothing"], ["y"])), "model_invalid"),
    "a value defined twice": (lambda m: m.graph.node.append(node("Identity", ["x"], ["z"])), "model_invalid"),
    "an unknown output": (lambda m: m.graph.output.add(name="nothing"), "model_invalid"),
    "no outputs": (lambda m: m.graph.ClearField("output"), "model_invalid"),
    "an input left out": (lambda m: m.graph.node[0].input.pop(), "model_invalid"),
    "an empty input": (lambda m: m.graph.node[0].input.__setitem__(1, ""), "model_invalid"),
    "too many outputs": (lambda m: m.graph.node[0].output.append("extra"), "model_invalid"),
    "no opset": (lambda m: m.ClearField("opset_import"), "model_invalid"),
    "an old opset": (lambda m: setattr(m.opset_import[0], "version", 6), "unsupported_opset"),
    "an opset to come": (lambda m: setattr(m.opset_import[0], "version", 999), "unsupported_opset"),
    "too little data": (_swap_weight(dims=[4, 3], raw_data=b"1234"), "model_invalid"),
    "a shape that lies": (_swap_weight(dims=[4, 30000000], raw_data=bytes(48)), "model_invalid"),
    "a shape of 40 GB": (_swap_weight(dims=[100000, 100000], raw_data=bytes(48)), "tensor_too_large"),
    "a negative size": (_swap_weight(dims=[-4, 3], raw_data=bytes(48)), "model_invalid"),
    "an absurd rank": (_swap_weight(dims=[1] * 1000, raw_data=bytes(4)), "model_too_complex"),
    "too few typed elements": (_swap_weight(dims=[4, 3], float_data=[1.0]), "model_invalid"),
    "an input that is a sequence": (
        lambda m: m.graph.input[0].CopyFrom(helper.make_tensor_sequence_value_info("x", 1, None)),
        "unsupported_input",
    ),
    "an input of strings": (
        lambda m: m.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.STRING, [None, 4])),
        "unsupported_dtype",
    ),
    "a sparse weight": (lambda m: m.graph.sparse_initializer.add(), "unsupported_sparse_tensor"),
    "a NaN": (_swap_weight(dims=[4, 3], float_data=[float("nan")] * 12), "model_not_finite"),
    "an infinity": (_swap_weight(dims=[4, 3], float_data=[float("inf")] * 12), "model_not_finite"),
    "no parameters": (
        lambda m: m.graph.node[0].CopyFrom(node("Softmax", ["x"], ["z"])),
        "model_no_parameters",
    ),
    "an unknown operator": (
        lambda m: m.graph.node[0].CopyFrom(node("Foo", ["x"], ["z"], name="me")),
        "unsupported_operator",
    ),
    "a domain that is not imported": (
        lambda m: m.graph.node[0].CopyFrom(node("Foo", ["x"], ["z"], domain="evil")),
        "model_invalid",
    ),
    "a long name": (lambda m: setattr(m.graph.node[0], "name", "n" * 100_000), "model_too_complex"),
    "deep nesting": (lambda m: m.graph.node[0].attribute.add(name="g", type=5, g=_nested(20)), "model_too_complex"),
    "an attribute twice": (
        lambda m: [m.graph.node[0].attribute.add(name="a", type=2, i=1) for _ in range(2)],
        "model_invalid",
    ),
}


@pytest.mark.parametrize(("change", "code"), CHANGES.values(), ids=CHANGES.keys())
def test_a_file_that_breaks_the_rules_is_refused(change: Callable[..., Any], code: str, build: Any) -> None:
    assert _code(_edited(build, change)) == code


@pytest.mark.parametrize("length", [1, 2, 10, 60, 100])
def test_a_file_cut_short_is_called_truncated_or_unrecognised(length: int, build: Any) -> None:
    data = build.bytes(GEMM, {"w": W})
    assert _code(data[:length]) in ("model_truncated", "model_unrecognized", "model_invalid")


def test_a_file_cut_within_its_graph_is_called_truncated(build: Any) -> None:
    data = build.bytes(GEMM, {"w": W})
    assert _code(data[: len(data) // 2]) == "model_truncated"


def test_a_graph_nested_ten_thousand_levels_deep_is_refused() -> None:
    def field(number: int, payload: bytes) -> bytes:
        size, prefix = len(payload), bytearray([number << 3 | 2])
        while size > 0x7F:
            prefix.append(size & 0x7F | 0x80)
            size >>= 7
        return bytes([*prefix, size]) + payload

    graph = b""
    for _ in range(10_000):
        graph = field(1, field(5, field(6, graph)))  # graph.node.attribute.g
    assert _code(b"\x08\x08" + field(7, graph)) == "model_invalid"


EXTERNAL: dict[str, Callable[[onnx.ModelProto], None]] = {
    "an initialiser": lambda m: _external(m.graph.initializer[0]),
    "an absolute path": lambda m: _external(m.graph.initializer[0], "/etc/passwd"),
    "a constant": lambda m: _external(
        m.graph.node.add(op_type="Constant", output=["c"]).attribute.add(name="value", type=4).t
    ),
    "a subgraph": lambda m: _external(
        m.graph.node.add(op_type="If", output=["c"]).attribute.add(name="then_branch", type=5).g.initializer.add()
    ),
    "a list of tensors": lambda m: _external(m.graph.node[0].attribute.add(name="t", type=9).tensors.add()),
    "a list of graphs": lambda m: _external(
        m.graph.node[0].attribute.add(name="g", type=10).graphs.add().initializer.add()
    ),
    "a sparse tensor": lambda m: _external(m.graph.sparse_initializer.add().values),
    "a function": lambda m: _external(
        m.functions.add(name="f").node.add(op_type="Constant").attribute.add(name="value", type=4).t
    ),
    "a training graph": lambda m: _external(m.training_info.add().algorithm.initializer.add()),
    "an attribute of another type": lambda m: _external(m.graph.node[0].attribute.add(name="i", type=2).t),
}


@pytest.mark.parametrize("change", EXTERNAL.values(), ids=EXTERNAL.keys())
def test_external_data_is_refused_wherever_it_hides(change: Callable[..., Any], build: Any) -> None:
    assert _code(_edited(build, change)) == "external_data_refused"


def test_a_name_that_is_not_text_is_refused(build: Any) -> None:
    data = build.bytes([node("Gemm", ["x", "w"], ["z"], name="some-name")], {"w": W})
    assert _code(data.replace(b"some-name", b"some\xffname")) == "model_invalid"


@pytest.mark.parametrize("seed", thinned(range(20), 7))
def test_a_damaged_file_ends_in_a_result_or_an_error_with_a_code(seed: int, build: Any, weights: Any) -> None:
    nodes = [
        node("Gemm", ["x", "w1", "b"], ["h"]),
        node("Tanh", ["h"], ["a"]),
        node("MatMul", ["a", "w2"], ["v"]),
        node("Softmax", ["v"], ["z"]),
    ]
    whole = build.bytes(nodes, weights(w1=(4, 5), b=(5,), w2=(5, 3)))
    rng = np.random.default_rng(seed)
    codes, shapes = set(), set()
    for _ in range(50):
        data = bytearray(whole)
        for position in rng.integers(0, len(data), rng.integers(1, 4)):
            data[position] = rng.integers(0, 256)
        try:
            model = load_model(bytes(data)).resolve()
            shapes.add(model.function(model.parameters, {"x": torch.zeros(2, 4)}).shape)
        except ModelError as error:
            codes.add(error.code)
    assert "model_invalid" in codes
    assert torch.Size([2, 3]) in shapes


def test_an_unsupported_operator_is_named_with_node_domain_and_opset(build: Any) -> None:
    data = build.bytes(
        [node("Gemm", ["x", "w"], ["v"]), node("Foo", ["v"], ["z"], name="me", domain="evil")],
        {"w": W},
        domains={"evil": 3},
    )
    with pytest.raises(ModelError, match=r"evil\.Foo.*me") as caught:
        load_model(data)
    assert caught.value.details == {"operator": "Foo", "domain": "evil", "opset": 3, "node": "me", "index": 1}


def test_a_loop_over_a_sequence_is_an_operator_that_is_not_supported(build: Any) -> None:
    condition = helper.make_tensor_value_info("on", TensorProto.BOOL, [])
    given = [helper.make_tensor_value_info("i", TensorProto.INT64, []), condition]
    rows = helper.make_tensor_sequence_value_info("rows", TensorProto.FLOAT, None)
    body = helper.make_graph(
        [node("Identity", ["on"], ["next"]), node("SequenceInsert", ["rows", "v"], ["more"])],
        "body",
        [*given, rows],
        [onnx.ValueInfoProto(name="next"), onnx.ValueInfoProto(name="more")],
    )
    nodes = [
        node("Gemm", ["x", "w"], ["v"]),
        node("SequenceEmpty", [], ["none"]),
        node("Loop", ["", "go", "none"], ["all"], body=body, name="bags"),
        node("ConcatFromSequence", ["all"], ["z"], axis=0),
    ]
    with pytest.raises(ModelError) as caught:
        load_model(build.bytes(nodes, {"w": W, "go": np.array(True)}))
    assert caught.value.code == "unsupported_operator"


@pytest.mark.parametrize("name", ["w", "r", "b", "h", "c"])
def test_a_recurrent_layer_whose_shapes_contradict_each_other_is_invalid(name: str, build: Any, weights: Any) -> None:
    shapes = {"w": [1, 20, 4], "r": [1, 20, 5], "b": [1, 40], "h": [1, 3, 5], "c": [1, 3, 5]}
    nodes = [
        node("LSTM", ["x", "w", "r", "b", "", "h", "c"], ["", "last"], hidden_size=5),
        node("Squeeze", ["last", "first"], ["z"]),
    ]

    def evaluated() -> torch.Tensor:
        data = build.bytes(nodes, {**weights(**shapes), "first": np.array([0])}, inputs={"x": [2, 3, 4]})
        model = load_model(data).resolve(head="logits")
        return model.function(model.parameters, {"x": torch.zeros(2, 3, 4)})

    assert torch.isfinite(evaluated()).all()
    shapes[name][1 if name == "w" else -1] -= 4
    with pytest.raises(ModelError, match="contradict each other") as caught:
        evaluated()
    assert caught.value.code == "model_invalid"
    assert "proj_size" in caught.value.advice


def test_a_weight_that_is_not_finite_is_named(build: Any) -> None:
    with pytest.raises(ModelError, match="'w'") as caught:
        load_model(build.bytes(GEMM, {"w": np.full((4, 3), np.nan, np.float32)}))
    assert caught.value.details["tensor"] == "w"


def test_a_small_file_that_asks_for_a_huge_constant_is_refused_before_it_is_made(build: Any) -> None:
    nodes = [
        node("ConstantOfShape", ["s"], ["c"]),
        node("ReduceSum", ["c"], ["t"], keepdims=0),
        node("Gemm", ["x", "w"], ["v"]),
        node("Add", ["v", "t"], ["z"]),
    ]
    data = build.bytes(nodes, {"w": W, "s": np.array([100_000, 100_000])})
    assert _code(data) == "tensor_too_large"


def test_an_attribute_of_the_wrong_type_is_refused(build: Any) -> None:
    nodes = [node("Gemm", ["x", "w"], ["z"], alpha="two")]
    assert _code(build.bytes(nodes, {"w": W})) == "model_invalid"


def test_shapes_that_do_not_fit_name_the_node(build: Any) -> None:
    data = build.bytes([node("Gemm", ["x", "w"], ["z"], name="head")], {"w": W}, inputs={"x": ["n", "d"]})
    model = load_model(data).resolve()
    with pytest.raises(ModelError, match=r"Gemm.*head") as caught:
        model.function(model.parameters, {"x": torch.zeros(2, 5)})
    assert caught.value.code == "evaluation_failed"


def test_every_tensor_of_a_file_is_looked_at(build: Any) -> None:
    model = build.model(GEMM, {"w": W})
    model.graph.node.append(node("Constant", [], ["c"], value=numpy_helper.from_array(W, "hidden")))
    assert "hidden" in [tensor.name for tensor in proto._tensors(model)]
