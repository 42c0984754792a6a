"""Models stored in float16 and bfloat16: H is that of the widened function, and the report says so."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from onnx.helper import make_node as node
from support.exports import share_operators
from support.forms import crossed
from torch import Tensor, nn

import wsb_engine as wsb

HALVES = {"float16": (torch.float16, TensorProto.FLOAT16), "bfloat16": (torch.bfloat16, TensorProto.BFLOAT16)}
X = torch.randn(7, 4, generator=torch.Generator().manual_seed(1))
Y = torch.arange(7) % 3


def perceptron(dtype: torch.dtype) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype).eval()


def oracle(module: nn.Module, x: Tensor = X) -> Tensor:
    """Eigenvalues, descending, by double backward of the module widened to float64."""
    module = copy.deepcopy(module).double()
    names = [name for name, _ in module.named_parameters()]
    values = tuple(value.detach().clone() for value in module.parameters())

    def loss(*given: Tensor) -> Tensor:
        z = torch.func.functional_call(module, dict(zip(names, given, strict=True)), (x.double(),))
        return nn.functional.cross_entropy(z, Y)

    blocks = torch.autograd.functional.hessian(loss, values)
    rows = [torch.cat([part.reshape(a.numel(), -1) for part in row], 1) for row, a in zip(blocks, values, strict=True)]
    return torch.linalg.eigvalsh(torch.cat(rows)).flip(0)


def raw(value: Tensor, name: str, kind: int) -> TensorProto:
    data = value.detach().contiguous().view(torch.int16).numpy().tobytes()
    return TensorProto(name=name, data_type=kind, dims=value.shape, raw_data=data)


def behind_casts(module: nn.Sequential, kind: int, width: int | None) -> bytes:
    """As converters write it: float32 inputs and outputs, a cast at both ends, everything between in half precision."""
    weights = [raw(value.T if value.ndim == 2 else value, name, kind) for name, value in module.named_parameters()]
    nodes = [
        node("Cast", ["x"], ["x16"], to=kind),
        node("MatMul", ["x16", "0.weight"], ["a"]),
        node("Add", ["a", "0.bias"], ["h"]),
        node("Tanh", ["h"], ["t"]),
        node("MatMul", ["t", "2.weight"], ["b"]),
        node("Add", ["b", "2.bias"], ["z16"]),
        node("Cast", ["z16"], ["z"], to=TensorProto.FLOAT),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, width])
    between = helper.make_tensor_value_info("h", kind, None)
    graph = helper.make_graph(nodes, "g", [x], [helper.make_tensor_value_info("z", 1, [None, 3])], weights)
    graph.value_info.append(between)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def stored_half(module: nn.Sequential, kind: int) -> bytes:
    """Weights in half precision that are cast to float32 where they are used."""
    weights = [raw(value, name, kind) for name, value in module.named_parameters()]
    casts = [node("Cast", [each.name], [f"{each.name}32"], to=TensorProto.FLOAT) for each in weights]
    nodes = [
        *casts,
        node("Gemm", ["x", "0.weight32", "0.bias32"], ["h"], transB=1),
        node("Tanh", ["h"], ["t"]),
        node("Gemm", ["t", "2.weight32", "2.bias32"], ["z"], transB=1),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 4])
    graph = helper.make_graph(nodes, "g", [x], [helper.make_tensor_value_info("z", 1, [None, 3])], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def exported(module: nn.Module, **options: Any) -> bytes:
    buffer = io.BytesIO()
    if options["dynamo"]:
        share_operators()
    example = X[:2].to(next(module.parameters()).dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (example,), buffer, verbose=False, **options)
    return buffer.getvalue()


def traced(module: nn.Module) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(module, X[:2].to(next(module.parameters()).dtype), check_trace=False), buffer)
    return buffer.getvalue()


def exported_program(module: nn.Module) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(module, (X[:2],)), buffer)
    return buffer.getvalue()


WAYS = {
    "behind casts": lambda module, kind: behind_casts(module, kind, 4),
    "behind casts, of no declared width": lambda module, kind: behind_casts(module, kind, None),
    "stored half": stored_half,
    "dynamo": lambda module, kind: exported(module, dynamo=True, external_data=False),
    "legacy": lambda module, kind: exported(module, dynamo=False),
    "traced": lambda module, kind: traced(module),
}


@pytest.mark.parametrize(("way", "dtype"), crossed(WAYS, HALVES))
def test_a_perceptron_in_half_precision_has_the_hessian_of_the_widened_one(way: str, dtype: str) -> None:
    module = perceptron(HALVES[dtype][0])
    data = WAYS[way](module, HALVES[dtype][1])
    report = wsb.analyze(wsb.load_model(data), wsb.Batch(X, Y), wsb.Options(spectrum="dense"))
    assert report.model.architecture == "mlp"
    assert report.moments is not None
    assert report.moments.method == "closed_form"
    assert report.spectrum is not None
    np.testing.assert_allclose(report.spectrum.eigenvalues, oracle(module), atol=1e-10)
    assert not report.failed_checks
    assert report.model.parameters.stored_dtypes == {dtype: 51}
    (message,) = report.messages("widened_parameters")
    assert dtype in message
    if way != "traced":  # which no other runtime reads
        assert report.model.parity is not None
        assert report.model.parity.max_abs_error < 1e-5


def test_a_model_in_float32_is_not_said_to_be_widened() -> None:
    module = perceptron(torch.float32)
    report = wsb.analyze(wsb.load_model(traced(module)), wsb.Batch(X, Y))
    assert report.model.parameters.stored_dtypes == {"float32": 51}
    assert not report.messages("widened_parameters")


@pytest.mark.parametrize("dtype", HALVES)
def test_casts_to_half_precision_between_float32_layers_are_named(dtype: str) -> None:
    module = perceptron(torch.float32)
    model = onnx.load_from_string(exported(module, dynamo=False))
    kind = HALVES[dtype][1]
    names = {node.op_type: node for node in model.graph.node}
    tanh = names["Tanh"]
    before = node("Cast", [tanh.input[0]], ["short"], to=kind)
    after = node("Cast", ["short"], ["long"], to=TensorProto.FLOAT)
    position = list(model.graph.node).index(tanh)
    tanh.input[0] = "long"
    model.graph.node.insert(position, after)
    model.graph.node.insert(position, before)
    report = wsb.analyze(wsb.load_model(model.SerializeToString()), wsb.Batch(X, Y), wsb.Options(spectrum="dense"))
    assert report.spectrum is not None
    np.testing.assert_allclose(report.spectrum.eigenvalues, oracle(module), atol=1e-9)
    assert dtype in report.messages("widened_parameters")[0]
    assert report.model.architecture == "mlp"
    assert not report.failed_checks


class Rounding(nn.Module):
    """Casts to a short type and back between two float32 layers."""

    def __init__(self, module: nn.Sequential, dtype: torch.dtype) -> None:
        super().__init__()
        self.module, self.dtype = module, dtype

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.module[2](self.module[1](self.module[0](x)).to(self.dtype).float())
        return z


@pytest.mark.parametrize(("write", "dtype"), crossed([traced, exported_program], HALVES))
def test_casts_in_archives_are_named(write: Callable[[nn.Module], bytes], dtype: str) -> None:
    module = perceptron(torch.float32)
    data = write(Rounding(module, HALVES[dtype][0]))
    report = wsb.analyze(wsb.load_model(data), wsb.Batch(X, Y), wsb.Options(spectrum="dense"))
    assert report.spectrum is not None
    np.testing.assert_allclose(report.spectrum.eigenvalues, oracle(module), atol=1e-9)
    assert dtype in report.messages("widened_parameters")[0]
