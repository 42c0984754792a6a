"""From the output to the logits: what is stripped, what is refused, and what has to be asked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from onnx import NodeProto
from onnx.helper import make_node as node
from torch import Tensor

from wsb_engine import ModelError, load_model
from wsb_engine.options import Head

X = np.random.default_rng(5).normal(size=(6, 4)).astype(np.float32)
AFFINE = [node("Gemm", ["x", "w", "b"], ["v"])]
LONE = {"w": (4, 1), "b": (1,)}
THREE = {"w": (4, 3), "b": (3,)}
ML = {"ai.onnx.ml": 3}


def _affine(values: dict[str, np.ndarray]) -> Tensor:
    return (
        torch.from_numpy(X).double() @ torch.from_numpy(values["w"]).double() + torch.from_numpy(values["b"]).double()
    )


def _complement(name: str, *, reverse: bool = False) -> list[NodeProto]:
    pair = [name, "q"] if reverse else ["q", name]
    return [node("Sub", ["one", name], ["q"]), node("Concat", pair, ["z"], axis=1)]


ONE = {"one": np.ones(1, np.float32)}
STRIPPED: dict[str, tuple[list[NodeProto], dict[str, Any], dict[str, Any], str]] = {
    "none": ([node("Identity", ["v"], ["z"])], THREE, {}, "none"),
    "softmax": ([node("Softmax", ["v"], ["z"], axis=1)], THREE, {}, "softmax"),
    "softmax within wrappers": (
        [
            node("Cast", ["v"], ["c"], to=11),
            node("Softmax", ["c"], ["p"]),
            node("Cast", ["p"], ["q"], to=1),
            node("Identity", ["q"], ["z"]),
        ],
        THREE,
        {},
        "softmax",
    ),
    "log-softmax": ([node("LogSoftmax", ["v"], ["z"])], THREE, {}, "log_softmax"),
    "log of softmax": ([node("Softmax", ["v"], ["p"]), node("Log", ["p"], ["z"])], THREE, {}, "log_softmax"),
    "sigmoid": ([node("Sigmoid", ["v"], ["z"])], LONE, {}, "sigmoid"),
    "sigmoid, squeezed": (
        [node("Sigmoid", ["v"], ["p"]), node("Squeeze", ["p", "axis"], ["z"])],
        LONE,
        {"axis": np.array([1])},
        "sigmoid",
    ),
    "sigmoid and its complement": ([node("Sigmoid", ["v"], ["p"]), *_complement("p")], LONE, ONE, "sigmoid"),
    "one logit": ([node("Identity", ["v"], ["z"])], LONE, {}, "none"),
}


@pytest.mark.parametrize(("nodes", "shapes", "constants", "name"), STRIPPED.values(), ids=STRIPPED.keys())
def test_the_logits_under_a_head_are_found(
    nodes: list[NodeProto], shapes: Any, constants: Any, name: str, build: Any, weights: Any, logits: Any
) -> None:
    values = weights(**shapes)
    model = load_model(build.bytes([*AFFINE, *nodes], values | constants)).resolve()
    assert model.head == name
    assert model.mlp is not None
    torch.testing.assert_close(logits(model, X), _affine(values))
    assert model.reference is not None
    np.testing.assert_allclose(model.reference({"x": X}), _affine(values), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("head", ["logits", "log_probabilities"])
def test_a_caller_can_say_that_the_output_is_z(head: Head, build: Any, weights: Any, logits: Any) -> None:
    values = weights(**THREE)
    data = build.bytes([*AFFINE, node("LogSoftmax", ["v"], ["z"])], values)
    model = load_model(data).resolve(head=head)
    assert model.head == "none"
    torch.testing.assert_close(logits(model, X), _affine(values).log_softmax(1))


def test_probabilities_that_no_softmax_made_become_logarithms(build: Any, weights: Any, logits: Any) -> None:
    values = weights(**THREE)
    nodes = [
        node("Softplus", ["v"], ["s"]),
        node("ReduceSum", ["s", "axis"], ["t"]),
        node("Div", ["s", "t"], ["z"]),
    ]
    data = build.bytes([*AFFINE, *nodes], values | {"axis": np.array([1])})
    positive = torch.nn.functional.softplus(_affine(values))
    expected = (positive / positive.sum(1, keepdim=True)).log()
    for head in ("auto", "probabilities"):
        model = load_model(data).resolve(head=head)  # type: ignore[arg-type]
        assert model.head == "probabilities"
        assert model.mlp is None
        torch.testing.assert_close(logits(model, X), expected)


def test_one_probability_becomes_its_logit(build: Any, weights: Any, logits: Any) -> None:
    values = weights(**LONE)
    nodes = [node("Neg", ["v"], ["m"]), node("Exp", ["m"], ["e"]), node("Add", ["one", "e"], ["d"])]
    data = build.bytes([*AFFINE, *nodes, node("Reciprocal", ["d"], ["z"])], values | ONE)
    model = load_model(data).resolve(head="binary_probability")
    torch.testing.assert_close(logits(model, X), _affine(values))


def test_an_affine_output_that_a_caller_calls_a_logit_is_taken_as_it_is(build: Any, weights: Any, logits: Any) -> None:
    values = weights(**LONE)
    data = build.bytes([*AFFINE, node("Squeeze", ["v", "a"], ["z"])], values | {"a": np.array([1])})
    model = load_model(data).resolve(head="binary_logit")
    assert logits(model, X).shape == (6, 1)


REFUSED: dict[str, tuple[list[NodeProto], dict[str, Any], dict[str, Any], str]] = {
    "a sigmoid for each class": ([node("Sigmoid", ["v"], ["z"])], THREE, {}, "multilabel_unsupported"),
    "two outputs that may be it": (
        [node("Identity", ["v"], ["z"]), node("Gemm", ["x", "w"], ["other"])],
        THREE,
        {"outputs": ("z", "other")},
        "ambiguous_output",
    ),
    "labels only": ([node("ArgMax", ["v"], ["z"], axis=1)], THREE, {}, "no_logits"),
    "softmax over samples": ([node("Softmax", ["v"], ["z"], axis=0)], THREE, {}, "unsupported_head"),
    "softmax of one class": ([node("Softmax", ["v"], ["z"])], LONE, {}, "single_class"),
    "numbers in [0, 1] that do not sum to 1": (
        [node("Tanh", ["v"], ["t"]), node("Mul", ["t", "t"], ["z"])],
        THREE,
        {},
        "ambiguous_head",
    ),
}


@pytest.mark.parametrize(("nodes", "shapes", "options", "code"), REFUSED.values(), ids=REFUSED.keys())
def test_an_output_that_is_no_distribution_is_refused(
    nodes: list[NodeProto], shapes: Any, options: Any, code: str, build: Any, weights: Any
) -> None:
    classifier = load_model(build.bytes([*AFFINE, *nodes], weights(**shapes), **options))
    with pytest.raises(ModelError) as caught:
        classifier.resolve()
    assert caught.value.code == code


def test_an_unknown_output_is_refused_with_the_names_of_the_outputs(build: Any, weights: Any) -> None:
    classifier = load_model(build.bytes([*AFFINE, node("Softmax", ["v"], ["z"])], weights(**THREE)))
    with pytest.raises(ModelError, match="z") as caught:
        classifier.resolve(output="y")
    assert caught.value.code == "unknown_output"


def test_one_of_several_outputs_can_be_named(build: Any, weights: Any, logits: Any) -> None:
    nodes = [*AFFINE, node("Identity", ["v"], ["z"]), node("MatMul", ["x", "w"], ["other"])]
    model = load_model(build.bytes(nodes, weights(**THREE), outputs=("z", "other"))).resolve(output="other")
    assert list(model.parameters) == ["w"]
    assert logits(model, X).shape == (6, 3)


def test_logits_and_their_softmax_as_two_outputs_are_one_answer(build: Any, weights: Any) -> None:
    nodes = [*AFFINE, node("Softmax", ["v"], ["z"])]
    model = load_model(build.bytes(nodes, weights(**THREE), outputs=("z", "v"))).resolve()
    assert model.mlp is not None


@pytest.mark.parametrize("labels", [[7, 8, 9], ["cat", "dog", "emu"]], ids=["integers", "strings"])
def test_the_class_labels_of_a_zipmap_are_reported(labels: list[Any], build: Any, weights: Any) -> None:
    attribute = {f"classlabels_{'int64s' if isinstance(labels[0], int) else 'strings'}": labels}
    nodes = [
        *AFFINE,
        node("Softmax", ["v"], ["p"]),
        node("ArgMax", ["p"], ["i"], axis=1),
        node("ZipMap", ["p"], ["z"], domain="ai.onnx.ml", **attribute),
    ]
    model = load_model(build.bytes(nodes, weights(**THREE), outputs=("i", "z"), domains=ML)).resolve()
    assert model.classes == tuple(labels)
    assert model.head == "softmax"


WRITTEN_OUT: dict[str, list[NodeProto]] = {
    "softmax": [
        node("ReduceMax", ["v"], ["m"], axes=[1]),
        node("Sub", ["v", "m"], ["s"]),
        node("Exp", ["s"], ["e"]),
        node("ReduceSum", ["e", "axis"], ["t"]),
        node("Div", ["e", "t"], ["z"]),
    ],
    "softmax without a kept axis": [
        node("ReduceMax", ["v"], ["m"], axes=[1], keepdims=0),
        node("Unsqueeze", ["m", "axis"], ["n"]),
        node("Sub", ["v", "n"], ["s"]),
        node("Exp", ["s"], ["e"]),
        node("ReduceSum", ["e", "axis"], ["t"], keepdims=0),
        node("Unsqueeze", ["t", "axis"], ["u"]),
        node("Div", ["e", "u"], ["z"]),
    ],
    "log_softmax": [
        node("Exp", ["v"], ["e"]),
        node("ReduceSum", ["e", "axis"], ["t"]),
        node("Log", ["t"], ["l"]),
        node("Sub", ["v", "l"], ["z"]),
    ],
    "log_softmax by log-sum-exp": [
        node("ReduceLogSumExp", ["v"], ["l"], axes=[1]),
        node("Sub", ["v", "l"], ["z"]),
    ],
}


@pytest.mark.parametrize(("name", "nodes"), WRITTEN_OUT.items(), ids=WRITTEN_OUT.keys())
def test_a_softmax_written_out_is_stripped(name: str, nodes: list[NodeProto], build: Any, weights: Any) -> None:
    data = build.bytes([*AFFINE, *nodes], weights(**THREE) | {"axis": np.array([1])})
    model = load_model(data).resolve()
    assert model.head == name.partition(" ")[0]
    assert model.mlp is not None


def test_independent_probabilities_divided_by_their_sum_are_a_softmax_of_their_logarithms(
    build: Any, weights: Any, logits: Any
) -> None:
    values = weights(**THREE)
    nodes = [
        *AFFINE,
        node("Sigmoid", ["v"], ["p"]),
        node("Normalizer", ["p"], ["z"], norm="L1", domain="ai.onnx.ml"),
    ]
    model = load_model(build.bytes(nodes, values, domains=ML)).resolve()
    p = torch.sigmoid(_affine(values))
    torch.testing.assert_close(logits(model, X).softmax(1), p / p.sum(1, keepdim=True))
    assert model.mlp is None


@pytest.mark.parametrize(("shift", "head"), [(0.0, "probabilities"), (2.0, "none")])
def test_an_output_that_the_graph_does_not_explain_is_identified_by_its_values(
    shift: float, head: str, build: Any, weights: Any
) -> None:
    nodes = [
        *AFFINE,
        node("Softplus", ["v"], ["s"]),
        node("ReduceSum", ["s", "axis"], ["t"]),
        node("Div", ["s", "t"], ["p"]),
        node("Add", ["p", "shift"], ["z"]),
    ]
    constants = {"axis": np.array([1]), "shift": np.float32(shift)}
    assert load_model(build.bytes(nodes, weights(**THREE) | constants)).resolve().head == head
