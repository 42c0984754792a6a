"""Builders and oracles that the reader's tests share."""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from support.eager import eager_hessian, randomised
from torch import Tensor, nn

from wsb_engine.model import LogitModel


def _saved(module: Any) -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(module, buffer)
    return buffer.getvalue()


def _traced(module: nn.Module, *example: Tensor) -> Any:
    return torch.jit.trace(module, example, check_trace=False, strict=False)


def _traced_without_gradients(module: nn.Module, *example: Tensor) -> Any:
    with torch.no_grad():  # torch takes its fused fast path then
        return _traced(module, *example)


def _scripted(module: nn.Module, *_: Tensor) -> Any:
    return torch.jit.script(module)


WAYS: dict[str, Callable[..., Any]] = {
    "traced": _traced,
    "traced without gradients": _traced_without_gradients,
    "scripted": _scripted,
    "scripted in training": lambda module, *_: _scripted(module).train(),
    "frozen": lambda module, *_: torch.jit.freeze(_scripted(module)),
    "frozen trace": lambda module, *example: torch.jit.freeze(_traced(module, *example)),
}


@pytest.fixture
def export() -> Callable[..., bytes]:
    """A module in evaluation mode → its archive, in one of ``WAYS``, with the exporters' own warnings left aside."""

    def run(way: str, module: nn.Module, *example: Tensor) -> bytes:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _saved(WAYS[way](module.eval(), *example))

    return run


@pytest.fixture
def scripted(export: Any) -> Callable[[nn.Module], bytes]:
    return lambda module: export("scripted", module)  # type: ignore[no-any-return]


@pytest.fixture
def traced(export: Any) -> Callable[..., bytes]:
    return lambda module, *example: export("traced", module, *example)  # type: ignore[no-any-return]


@pytest.fixture
def rewritten() -> Callable[..., bytes]:
    """The archive with some members changed or added: path below its folder → function of the old bytes, or bytes."""

    def rewrite(data: bytes, changes: Mapping[str, Any]) -> bytes:
        buffer = io.BytesIO()
        left = dict(changes)
        with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w") as new:
            for entry in old.infolist():
                folder, _, name = entry.filename.partition("/")
                if name.endswith(".debug_pkl"):
                    continue
                content = old.read(entry)
                change = left.pop(name, None)
                if change is not None:
                    content = change(content) if callable(change) else change
                new.writestr(f"{folder}/{name}", content)
            for name, content in left.items():
                new.writestr(f"{folder}/{name}", content)
        return buffer.getvalue()

    return rewrite


@pytest.fixture
def logits() -> Callable[..., Tensor]:
    """z of a model in float64."""

    def evaluate(model: LogitModel, *x: Tensor, names: tuple[str, ...] = ("x",)) -> Tensor:
        inputs = {
            name: value.double() if value.is_floating_point() else value for name, value in zip(names, x, strict=True)
        }
        return model.function({name: tensor.double() for name, tensor in model.parameters.items()}, inputs)

    return evaluate


@pytest.fixture(name="eager_hessian")
def eager_hessian_fixture() -> Callable[..., Tensor]:
    return eager_hessian


@pytest.fixture(name="randomised")
def randomised_fixture() -> Callable[..., nn.Module]:
    return randomised
