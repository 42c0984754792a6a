"""The recogniser finds an MLP however it is written, and nothing else."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import NodeProto, TensorProto
from onnx.helper import make_node as node
from torch import Tensor

from wsb_engine import load_model
from wsb_engine.curvature.tracing.smoothness import nonsmooth_operators

# torch compiles its forward-mode formulas with torch.jit.script when they are first used.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*is deprecated:DeprecationWarning")

GOLDEN = sorted((Path(__file__).parents[3] / "golden").glob("*.json"))
X = np.random.default_rng(5).normal(size=(6, 4)).astype(np.float32)
ONE, HALF, ROOT2 = np.float32(1), np.float32(0.5), np.float32(math.sqrt(2))


def _activation(kind: str) -> tuple[list[NodeProto], dict[str, Any]]:
    """Nodes h → a, and their constants, of one spelling."""
    gelu_tanh = {"c": np.float32(0.044715), "s": np.float32(math.sqrt(2 / math.pi)), "one": ONE, "half": HALF}
    spellings: dict[str, tuple[list[NodeProto], dict[str, Any]]] = {
        "tanh": ([node("Tanh", ["h"], ["a"])], {}),
        "sigmoid": ([node("Sigmoid", ["h"], ["a"])], {}),
        "sigmoid written with exp": (
            [
                node("Neg", ["h"], ["h1"]),
                node("Exp", ["h1"], ["h2"]),
                node("Add", ["one", "h2"], ["h3"]),
                node("Reciprocal", ["h3"], ["a"]),
            ],
            {"one": ONE},
        ),
        "softplus": ([node("Softplus", ["h"], ["a"])], {}),
        "softplus with torch's threshold": (
            [
                node("Softplus", ["h"], ["h1"]),
                node("Greater", ["h", "t"], ["h2"]),
                node("Where", ["h2", "h", "h1"], ["a"]),
            ],
            {"t": np.float32(20)},
        ),
        "gelu": ([node("Gelu", ["h"], ["a"])], {}),
        "gelu, tanh form": ([node("Gelu", ["h"], ["a"], approximate="tanh")], {}),
        "gelu written with erf, x(1 + erf)/2": (
            [
                node("Div", ["h", "root2"], ["h1"]),
                node("Erf", ["h1"], ["h2"]),
                node("Add", ["h2", "one"], ["h3"]),
                node("Mul", ["h", "h3"], ["h4"]),
                node("Mul", ["h4", "half"], ["a"]),
            ],
            {"root2": ROOT2, "one": ONE, "half": HALF},
        ),
        "gelu written with erf, (x/2)(1 + erf)": (
            [
                node("Mul", ["h", "half"], ["h0"]),
                node("Mul", ["h", "inverse"], ["h1"]),
                node("Erf", ["h1"], ["h2"]),
                node("Add", ["one", "h2"], ["h3"]),
                node("Mul", ["h0", "h3"], ["a"]),
            ],
            {"inverse": ONE / ROOT2, "one": ONE, "half": HALF.reshape(1, 1)},
        ),
        "gelu written with tanh and pow": (
            [
                node("Pow", ["h", "three"], ["h1"]),
                node("Mul", ["c", "h1"], ["h2"]),
                node("Add", ["h", "h2"], ["h3"]),
                node("Mul", ["s", "h3"], ["h4"]),
                node("Tanh", ["h4"], ["h5"]),
                node("Add", ["h5", "one"], ["h6"]),
                node("Mul", ["half", "h6"], ["h7"]),
                node("Mul", ["h", "h7"], ["a"]),
            ],
            {**gelu_tanh, "three": np.float32(3)},
        ),
        "gelu written with tanh and products": (
            [
                node("Mul", ["h", "h"], ["h0"]),
                node("Mul", ["h", "h0"], ["h1"]),
                node("Mul", ["c", "h1"], ["h2"]),
                node("Add", ["h", "h2"], ["h3"]),
                node("Mul", ["s", "h3"], ["h4"]),
                node("Tanh", ["h4"], ["h5"]),
                node("Add", ["one", "h5"], ["h6"]),
                node("Mul", ["h", "h6"], ["h7"]),
                node("Mul", ["half", "h7"], ["a"]),
            ],
            gelu_tanh,
        ),
        "silu": ([node("Sigmoid", ["h"], ["h1"]), node("Mul", ["h1", "h"], ["a"])], {}),
        "silu as swish": ([node("Swish", ["h"], ["a"])], {}),
        "elu": ([node("Elu", ["h"], ["a"], alpha=1.5)], {}),
        "identity": ([node("Identity", ["h"], ["a"])], {}),
    }
    return spellings[kind]


ACTIVATIONS = {
    "tanh": "tanh",
    "sigmoid": "sigmoid",
    "sigmoid written with exp": "sigmoid",
    "softplus": "softplus",
    "softplus with torch's threshold": "softplus",
    "gelu": "gelu",
    "gelu, tanh form": "gelu_tanh",
    "gelu written with erf, x(1 + erf)/2": "gelu",
    "gelu written with erf, (x/2)(1 + erf)": "gelu",
    "gelu written with tanh and pow": "gelu_tanh",
    "gelu written with tanh and products": "gelu_tanh",
    "silu": "silu",
    "silu as swish": "silu",
    "elu": "elu",
    "identity": "identity",
}


@pytest.mark.parametrize(("spelling", "kind"), ACTIVATIONS.items(), ids=ACTIVATIONS.keys())
def test_every_spelling_of_an_activation_is_recognised(
    spelling: str, kind: str, build: Any, weights: Any, logits: Any, mlp_logits: Any
) -> None:
    nodes, constants = _activation(spelling)
    data = build.bytes(
        [
            node("Gemm", ["x", "w1", "b1"], ["h"], transB=1),
            *nodes,
            node("Gemm", ["a", "w2", "b2"], ["z"], transB=1),
        ],
        weights(w1=(5, 4), b1=(5,), w2=(3, 5), b2=(3,)) | constants,
        opset=24,
    )
    model = load_model(data).resolve()
    assert model.mlp is not None
    assert [each.kind for each in model.mlp.activations] == [kind]
    assert list(model.parameters) == ["w1", "b1", "w2", "b2"]
    found = nonsmooth_operators(model.function, model.parameters, {"x": torch.from_numpy(X)})
    assert found == (("Elu",) if kind == "elu" else ())
    torch.testing.assert_close(mlp_logits(model, X), logits(model, X), rtol=1e-7, atol=1e-7)


LAYERS: dict[str, tuple[list[NodeProto], dict[str, tuple[int, ...]]]] = {
    "gemm": ([node("Gemm", ["x", "w", "b"], ["z"])], {"w": (4, 3), "b": (3,)}),
    "gemm, stored transposed": ([node("Gemm", ["x", "w", "b"], ["z"], transB=1)], {"w": (3, 4), "b": (1, 3)}),
    "gemm without bias": ([node("Gemm", ["x", "w"], ["z"])], {"w": (4, 3)}),
    "matmul": ([node("MatMul", ["x", "w"], ["z"])], {"w": (4, 3)}),
    "matmul and add": (
        [node("MatMul", ["x", "w"], ["p"]), node("Add", ["p", "b"], ["z"])],
        {"w": (4, 3), "b": (3,)},
    ),
    "add and matmul": (
        [node("MatMul", ["x", "w"], ["p"]), node("Add", ["b", "p"], ["z"])],
        {"w": (4, 3), "b": (1, 3)},
    ),
    "weight transposed in the graph": (
        [
            node("Transpose", ["w"], ["wt"], perm=[1, 0]),
            node("MatMul", ["x", "wt"], ["p"]),
            node("Add", ["p", "b"], ["z"]),
        ],
        {"w": (3, 4), "b": (3,)},
    ),
    "weight on the left": (
        [
            node("Transpose", ["x"], ["xt"], perm=[1, 0]),
            node("MatMul", ["w", "xt"], ["p"]),
            node("Transpose", ["p"], ["pt"]),
            node("Add", ["pt", "b"], ["z"]),
        ],
        {"w": (3, 4), "b": (3,)},
    ),
    "wrapped": (
        [
            node("Identity", ["x"], ["x1"]),
            node("Cast", ["x1"], ["x2"], to=TensorProto.FLOAT),
            node("Flatten", ["x2"], ["x3"]),
            node("Dropout", ["x3"], ["x4"]),
            node("Gemm", ["x4", "w", "b"], ["p"]),
            node("Cast", ["p"], ["z"], to=TensorProto.FLOAT),
        ],
        {"w": (4, 3), "b": (3,)},
    ),
}


@pytest.mark.parametrize(("nodes", "shapes"), LAYERS.values(), ids=LAYERS.keys())
def test_every_spelling_of_a_layer_is_recognised(
    nodes: list[NodeProto], shapes: Any, build: Any, weights: Any, logits: Any, mlp_logits: Any
) -> None:
    data = build.bytes(nodes, weights(**shapes))
    model = load_model(data).resolve()
    assert model.mlp is not None
    assert len(model.mlp.layers) == 1
    assert list(model.parameters) == list(shapes)
    torch.testing.assert_close(mlp_logits(model, X), logits(model, X))
    assert model.reference is not None
    np.testing.assert_allclose(model.reference({"x": X}), logits(model, X), rtol=1e-5, atol=1e-5)


GEMM1 = [node("Gemm", ["x", "w1", "b1"], ["h"], transB=1)]
TANH = [node("Tanh", ["h"], ["a"])]
GEMM2 = [node("Gemm", ["a", "w2", "b2"], ["z"], transB=1)]
OTHERS: dict[str, tuple[list[NodeProto], dict[str, Any]]] = {
    "relu": ([*GEMM1, node("Relu", ["h"], ["a"]), *GEMM2], {}),
    "mish": ([*GEMM1, node("Mish", ["h"], ["a"]), *GEMM2], {}),
    "a skip connection": (
        [*GEMM1, node("Tanh", ["h"], ["t"]), node("Add", ["t", "x"], ["a"]), *GEMM2],
        {"w1": (4, 4), "b1": (4,), "w2": (3, 4)},
    ),
    "alpha": ([node("Gemm", ["x", "w1", "b1"], ["h"], transB=1, alpha=2.0), *TANH, *GEMM2], {}),
    "beta": ([node("Gemm", ["x", "w1", "b1"], ["h"], transB=1, beta=0.5), *TANH, *GEMM2], {}),
    "tanh but at one point": (
        [
            *GEMM1,
            node("Tanh", ["h"], ["t"]),
            node("Equal", ["h", "c"], ["e"]),
            node("Where", ["e", "c", "t"], ["a"]),
            *GEMM2,
        ],
        {},
    ),
    "one bias for all units": ([*GEMM1, *TANH, *GEMM2], {"b1": (1,)}),
    "a scaled hidden layer": (
        [*GEMM1, node("Tanh", ["h"], ["t"]), node("Mul", ["t", "b1"], ["a"]), *GEMM2],
        {},
    ),
    "a weight used twice": (
        [
            node("Gemm", ["x", "w1"], ["h"], transB=1),
            node("Tanh", ["h"], ["a"]),
            node("Gemm", ["a", "w1"], ["z"], transB=1),
        ],
        {"w1": (4, 4)},
    ),
}


@pytest.mark.parametrize(("nodes", "shapes"), OTHERS.values(), ids=OTHERS.keys())
def test_what_is_no_smooth_mlp_is_not_taken_for_one(
    nodes: list[NodeProto], shapes: Any, build: Any, weights: Any, logits: Any
) -> None:
    values = weights(**{"w1": (5, 4), "b1": (5,), "w2": (3, 5), "b2": (3,)} | shapes)
    model = load_model(build.bytes(nodes, values | {"c": np.float32(0.123)}, opset=22)).resolve()
    assert model.mlp is None
    assert logits(model, X).shape[0] == len(X)


def test_a_sequence_of_vectors_is_not_a_matrix_of_samples(build: Any, weights: Any) -> None:
    nodes = [
        node("MatMul", ["x", "w"], ["p"]),
        node("Flatten", ["p"], ["f"]),
        node("Identity", ["f"], ["z"]),
    ]
    model = load_model(build.bytes(nodes, weights(w=(4, 3)), inputs={"x": ["n", 2, 4]})).resolve()
    assert model.mlp is None


def test_preprocessing_without_parameters_becomes_features(
    build: Any, weights: Any, logits: Any, mlp_logits: Any
) -> None:
    x = np.random.default_rng(1).normal(size=(6, 2, 2)).astype(np.float32)
    nodes = [
        node("Flatten", ["x"], ["f"]),
        node("Sub", ["f", "mean"], ["c"]),
        node("Div", ["c", "scale"], ["s"]),
        node("Gemm", ["s", "w", "b"], ["z"]),
    ]
    scaling = {"mean": np.float32([1, 2, 3, 4]), "scale": np.float32([2, 2, 3, 4])}
    data = build.bytes(nodes, weights(w=(4, 3), b=(3,)) | scaling, inputs={"x": ["n", 2, 2]})
    model = load_model(data).resolve()
    assert list(model.parameters) == ["w", "b"]
    torch.testing.assert_close(mlp_logits(model, x), logits(model, x))


def _golden_model(case: dict[str, Any], build: Any) -> bytes:
    spelling = {"gelu": "Gelu", "silu": "Swish", "tanh": "Tanh", "sigmoid": "Sigmoid", "softplus": "Softplus"}
    nodes: list[NodeProto] = []
    values: dict[str, np.ndarray] = {}
    source = "x"
    for index, (weight, bias) in enumerate(zip(case["weights"], case["biases"], strict=True)):
        last = index == len(case["weights"]) - 1
        values[f"w{index}"] = np.array(weight)
        inputs = [source, f"w{index}"]
        if bias is not None:
            values[f"b{index}"] = np.array(bias)
            inputs.append(f"b{index}")
        nodes.append(node("Gemm", inputs, ["z" if last else f"h{index}"], transB=1))
        if not last:
            nodes.append(node(spelling[case["activation"]], [f"h{index}"], [f"a{index}"]))
            source = f"a{index}"
    return build.bytes(nodes, values, inputs={"x": ["n", case["dims"][0]]}, opset=24, dtype=TensorProto.DOUBLE)


def _loss(case: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    y = torch.from_numpy(np.array(case["y"]))  # int64 labels, or float64 probabilities
    if case["loss_kind"] == "binary_cross_entropy":
        return lambda z: torch.nn.functional.binary_cross_entropy_with_logits(z.reshape(-1), y.double())
    return lambda z: torch.nn.functional.cross_entropy(z, y)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_the_hessian_of_a_golden_network_is_reproduced(path: Path, build: Any) -> None:
    case = json.loads(path.read_text())
    model = load_model(_golden_model(case, build)).resolve(
        head="binary_logit" if case["loss_kind"] == "binary_cross_entropy" else "auto"
    )
    assert model.mlp is not None
    loss = _loss(case)
    inputs = {"x": torch.tensor(case["x"], dtype=torch.float64)}
    flat = torch.cat([value.reshape(-1) for value in model.parameters.values()])
    sizes = [value.numel() for value in model.parameters.values()]

    def of_flat(theta: Tensor) -> Tensor:
        parts = zip(model.parameters.items(), theta.split(sizes), strict=True)
        return loss(model.function({name: part.view_as(value) for (name, value), part in parts}, inputs))

    hessian = torch.func.hessian(of_flat)(flat)
    expected = case["expected"]
    assert float(of_flat(flat)) == pytest.approx(expected["loss"], rel=1e-10)
    assert float(hessian.trace()) == pytest.approx(expected["trace"], rel=1e-9)
    assert float(hessian.square().sum()) == pytest.approx(expected["frobenius_squared"], rel=1e-9)
