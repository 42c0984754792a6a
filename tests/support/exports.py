"""A module in each of the formats that are read."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

import wsb_engine as wsb
from wsb_engine.model import Classifier


@functools.cache
def share_operators() -> None:
    """Have torch's newer exporter to ONNX build its table of operators once: most of its time for a small network."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry  # the exporter takes seconds to import

    # Nothing writes to a table but what registers operators of one's own, which no test does.
    ONNXRegistry.from_torchlib = staticmethod(functools.cache(ONNXRegistry.from_torchlib))  # type: ignore[assignment]


def live(module: nn.Module, example: Tensor) -> Classifier:
    return wsb.from_module(module.double())


def traced(module: nn.Module, example: Tensor) -> Classifier:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(module.double(), example.double(), check_trace=False), buffer)
    return wsb.load_model(buffer.getvalue())


def onnx(module: nn.Module, example: Tensor, *, dynamo: bool = False) -> Classifier:
    buffer = io.BytesIO()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    if dynamo:
        share_operators()
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.float().eval(), (example.float(),), buffer, dynamo=dynamo, opset_version=18, input_names=["x"],
            verbose=False,
        )  # fmt: skip
    return wsb.load_model(buffer.getvalue())


FORMATS: dict[str, Callable[[nn.Module, Tensor], Classifier]] = {"live": live, "torchscript": traced, "onnx": onnx}
