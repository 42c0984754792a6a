"""Small MLP classifiers with their exact Hessian quantities, computed by another implementation (tests/golden)."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from wsb_engine.curvature.closed_form.mlp import Layer, Network
from wsb_engine.curvature.losses import Targets, automatic
from wsb_engine.model import Activation

FOLDER = Path(__file__).parent.parent / "golden"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))

_OPERATORS = {"tanh": "Tanh", "sigmoid": "Sigmoid", "softplus": "Softplus", "gelu": "Gelu"}
_MODULES = {"tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "softplus": nn.Softplus, "gelu": nn.GELU, "silu": nn.SiLU}


class Golden:
    """One case in the forms that tests need it in; everything is float64."""

    def __init__(self, name: str) -> None:
        case = json.loads((FOLDER / f"{name}.json").read_text())
        self.name: str = name
        self.activation: str | None = case["activation"]
        self.weights = [np.array(weight) for weight in case["weights"]]
        self.biases = [None if bias is None else np.array(bias) for bias in case["biases"]]
        self.x = np.array(case["x"])
        self.y = np.array(case["y"])
        self.expected: dict[str, Any] = case["expected"]

    @property
    def eigenvalues(self) -> np.ndarray:
        """Descending."""
        return np.array(self.expected["eigenvalues_ascending"])[::-1]

    def network(self) -> Network:
        layers = [
            Layer(str(i), torch.from_numpy(w), None if b is None else torch.from_numpy(b), True, b is not None)
            for i, (w, b) in enumerate(zip(self.weights, self.biases, strict=True))
        ]
        activations = [Activation(kind=self.activation or "identity")] * (len(layers) - 1)
        return Network(tuple(layers), tuple(activations), automatic(len(self.weights[-1])))

    def targets(self) -> Targets:
        y: Tensor = torch.from_numpy(self.y)
        if self.weights[-1].shape[0] == 1:
            y = y.double().reshape(-1, 1)
        elif y.ndim == 1:
            y = nn.functional.one_hot(y, self.weights[-1].shape[0]).double()
        return Targets(y, torch.full((len(y),), 1 / len(y), dtype=torch.float64))

    def module(self) -> nn.Module:
        parts: list[nn.Module] = []
        for i, (w, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            linear = nn.Linear(w.shape[1], w.shape[0], bias=b is not None, dtype=torch.float64)
            linear.load_state_dict(
                {"weight": torch.from_numpy(w)} | ({} if b is None else {"bias": torch.from_numpy(b)})
            )
            parts.append(linear)
            if i + 1 < len(self.weights) and self.activation is not None:
                parts.append(_MODULES[self.activation]())
        return nn.Sequential(*parts)

    def onnx(self) -> bytes:
        """A float64 ONNX file: Gemm with transB where there is a bias, MatMul otherwise."""
        nodes, tensors, value = [], [], "x"
        for i, (w, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            tensors.append(numpy_helper.from_array(w if b is not None else np.ascontiguousarray(w.T), f"w{i}"))
            if b is None:
                nodes.append(helper.make_node("MatMul", [value, f"w{i}"], [f"h{i}"]))
            else:
                tensors.append(numpy_helper.from_array(b, f"b{i}"))
                nodes.append(helper.make_node("Gemm", [value, f"w{i}", f"b{i}"], [f"h{i}"], transB=1))
            value = f"h{i}"
            if i + 1 < len(self.weights) and self.activation is not None:
                value = self._activate(nodes, i)
        graph = helper.make_graph(
            nodes,
            self.name,
            [helper.make_tensor_value_info("x", TensorProto.DOUBLE, ["n", self.x.shape[1]])],
            [helper.make_tensor_value_info(value, TensorProto.DOUBLE, ["n", self.weights[-1].shape[0]])],
            tensors,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
        model.ir_version = 9
        return bytes(model.SerializeToString())

    def _activate(self, nodes: list[Any], i: int) -> str:
        if self.activation == "silu":
            nodes.append(helper.make_node("Sigmoid", [f"h{i}"], [f"s{i}"]))
            nodes.append(helper.make_node("Mul", [f"h{i}", f"s{i}"], [f"a{i}"]))
        else:
            nodes.append(helper.make_node(_OPERATORS[str(self.activation)], [f"h{i}"], [f"a{i}"]))
        return f"a{i}"

    def npz(self) -> bytes:
        buffer = io.BytesIO()
        np.savez(buffer, x=self.x, y=self.y)
        return buffer.getvalue()
