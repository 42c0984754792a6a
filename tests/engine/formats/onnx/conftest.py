"""Builders and evaluators that the reader's tests share."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from support.exports import share_operators
from torch import Tensor

from wsb_engine.curvature.closed_form.activations import derivatives
from wsb_engine.model import LogitModel

Shape = Sequence[int | str | None] | None


class Build:
    """Writes small ONNX models by hand."""

    node = staticmethod(helper.make_node)

    @staticmethod
    def model(
        nodes: Sequence[onnx.NodeProto],
        weights: Mapping[str, np.ndarray] | None = None,
        *,
        inputs: Mapping[str, Shape] | None = None,
        outputs: Sequence[str] = ("z",),
        opset: int = 17,
        dtype: int = TensorProto.FLOAT,
        functions: Sequence[onnx.FunctionProto] = (),
        domains: Mapping[str, int] | None = None,
    ) -> onnx.ModelProto:
        given = inputs if inputs is not None else {"x": ["n", 4]}
        graph = helper.make_graph(
            list(nodes),
            "g",
            [helper.make_tensor_value_info(name, dtype, shape) for name, shape in given.items()],
            [onnx.ValueInfoProto(name=name) for name in outputs],
            [numpy_helper.from_array(np.asarray(value), name) for name, value in (weights or {}).items()],
        )
        imports = [helper.make_opsetid(domain, version) for domain, version in (domains or {}).items()]
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", opset), *imports], functions=list(functions)
        )
        model.ir_version = 8 if opset < 20 else 10
        return model

    @classmethod
    def bytes(cls, *args: Any, **kwargs: Any) -> bytes:
        return cls.model(*args, **kwargs).SerializeToString()


@pytest.fixture
def build() -> type[Build]:
    return Build


@pytest.fixture
def weights() -> Callable[..., dict[str, np.ndarray]]:
    """Random float32 arrays by name and shape."""

    def make(seed: int = 0, dtype: str = "float32", **shapes: Sequence[int]) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        return {name: (0.7 * rng.normal(size=shape)).astype(dtype) for name, shape in shapes.items()}

    return make


@pytest.fixture
def logits() -> Callable[..., Tensor]:
    """z of a model in float64, for one array or arrays by input name."""

    def evaluate(model: LogitModel, x: Any, name: str = "x") -> Tensor:
        arrays = x if isinstance(x, Mapping) else {name: x}
        inputs = {key: torch.as_tensor(value) for key, value in arrays.items()}
        inputs = {key: value.double() if value.is_floating_point() else value for key, value in inputs.items()}
        return model.function({key: value.double() for key, value in model.parameters.items()}, inputs)

    return evaluate


@pytest.fixture
def mlp_logits() -> Callable[..., Tensor]:
    """z computed from the recognised structure alone, not by the reader's operators."""

    def evaluate(model: LogitModel, x: Any, name: str = "x") -> Tensor:
        assert model.mlp is not None
        values = {key: value.double() for key, value in model.parameters.items()}
        a = model.mlp.features({name: torch.as_tensor(x).double()})
        for index, layer in enumerate(model.mlp.layers):
            weight = values[layer.weight]
            h = a @ (weight if layer.transposed else weight.T)
            if layer.bias is not None:
                h = h + values[layer.bias].reshape(-1)
            last = index == len(model.mlp.activations)
            a = h if last else derivatives(model.mlp.activations[index], h)[0]
        return a

    return evaluate


@pytest.fixture(scope="session")
def export() -> Callable[..., bytes]:
    """torch.onnx.export, with the exporters' own warnings left aside."""

    def run(module: torch.nn.Module, example: Tensor, *, dynamo: bool, opset: int, **options: Any) -> bytes:
        buffer = io.BytesIO()
        if dynamo:
            share_operators()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module.eval(),
                (example,),
                buffer,
                dynamo=dynamo,
                opset_version=opset,
                input_names=["x"],
                verbose=False,
                **options,
            )
        return buffer.getvalue()

    return run
