"""The ways in which the documentation of torch says to write a model to a file."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn

from zoo.families import Inputs

Exporter = Callable[[nn.Module, Inputs, Path], Path]
"""(module, example inputs, empty folder) → the model file in it."""


def onnx_dynamo(module: nn.Module, inputs: Inputs, folder: Path) -> Path:
    return _onnx(module, inputs, folder)


def onnx_dynamo_dynamic(module: nn.Module, inputs: Inputs, folder: Path) -> Path:
    return _onnx(module, inputs, folder, dynamic_shapes=_free_batch(inputs))


def onnx_legacy(module: nn.Module, inputs: Inputs, folder: Path) -> Path:
    return _onnx(module, inputs, folder, dynamo=False)


def jit_trace(module: nn.Module, inputs: Inputs, folder: Path) -> Path:
    path = folder / "model.pt"
    torch.jit.save(torch.jit.trace(module, tuple(inputs.values()), check_trace=False), path)
    return path


def export_save(module: nn.Module, inputs: Inputs, folder: Path) -> Path:
    path = folder / "model.pt2"
    torch.export.save(torch.export.export(module, tuple(inputs.values())), path)
    return path


def export_save_dynamic(module: nn.Module, inputs: Inputs, folder: Path) -> Path:
    path = folder / "model.pt2"
    program = torch.export.export(module, tuple(inputs.values()), dynamic_shapes=_free_batch(inputs))
    torch.export.save(program, path)
    return path


EXPORTERS: dict[str, Exporter] = {
    "torch.onnx": onnx_dynamo,
    "torch.onnx, dynamic batch": onnx_dynamo_dynamic,
    "torch.onnx, dynamo=False": onnx_legacy,
    "torch.jit.trace": jit_trace,
    "torch.export": export_save,
    "torch.export, dynamic batch": export_save_dynamic,
}
EXAMPLES = {name: (2,) if name.endswith("dynamic batch") else (1, 2, 8) for name in EXPORTERS}
"""Sizes of the example batch. A batch that is to stay dynamic can't be shown by one row."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide what exporters print and warn of: a failure is an exception."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield


def _onnx(module: nn.Module, inputs: Inputs, folder: Path, **options: object) -> Path:
    path = folder / "model.onnx"
    torch.onnx.export(module, tuple(inputs.values()), path, input_names=list(inputs), verbose=False, **options)
    return path


def _free_batch(inputs: Inputs) -> tuple[dict[int, object], ...]:
    batch = torch.export.Dim("batch", min=1, max=64)
    return tuple({0: batch} for _ in inputs)
