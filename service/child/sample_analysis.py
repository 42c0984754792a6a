"""A small analysis that warms up a process: the first one in a process is slow."""

from __future__ import annotations

import io

import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper

from wsb_engine import Options, analyze, load_batch, load_model

_SAMPLES, _WIDTHS = 8, (4, 3, 2)


def run_sample_analysis(device: str = "cpu") -> None:
    """Load and analyse a network of two layers on one CPU thread, or on a GPU."""
    torch.set_num_threads(1)
    analyze(load_model(model()), load_batch(batch()), Options(device=device))


def model() -> bytes:
    """Return the ONNX file of the network."""
    features, hidden, classes = _WIDTHS
    random = np.random.default_rng(0)
    shapes = {"w0": (features, hidden), "b0": (hidden,), "w1": (hidden, classes), "b1": (classes,)}
    arrays = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    nodes = [
        helper.make_node("Gemm", ["x", "w0", "b0"], ["h"]),
        helper.make_node("Tanh", ["h"], ["a"]),
        helper.make_node("Gemm", ["a", "w1", "b1"], ["logits"]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", features])]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", classes])]
    parameters = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "sample", inputs, outputs, parameters)
    opsets = [helper.make_opsetid("", 17)]
    content: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    return content


def batch() -> bytes:
    """Return an .npz file of a few samples."""
    x = np.random.default_rng(1).normal(size=(_SAMPLES, _WIDTHS[0])).astype(np.float32)
    file = io.BytesIO()
    np.savez(file, x=x, y=np.arange(_SAMPLES) % _WIDTHS[-1])
    return file.getvalue()
