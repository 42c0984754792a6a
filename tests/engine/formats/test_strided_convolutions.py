"""No derivative may reach the convolutions that oneDNN computes beyond its memory, however a model states them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.forms import full, thinned
from torch import Tensor, nn
from torch.nn import functional

import wsb_engine as wsb
from wsb_engine.curvature.tracing.dispatch import OperatorWatch
from wsb_engine.formats.graph.kernels.convolution import CHANNELS, unit_stride
from wsb_engine.report import CertifiedInterval

SAMPLES, CLASSES = 4, 3
# Exporters warn of what torch deprecates.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


class Residual(nn.Module):
    """A block whose shortcut thins out the image by a kernel of one element."""

    def __init__(self, width: int = 3, *, transposed: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.body = nn.Conv2d(width, 5, 3, stride=2, padding=1)
        self.shortcut = nn.Conv2d(width, 5, 1, stride=2)
        self.last = nn.Linear(5, CLASSES)
        self.transposed = transposed

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.stem(x.permute(0, 3, 1, 2) if self.transposed else x))
        logits: Tensor = self.last(torch.tanh(self.body(x) + self.shortcut(x)).mean((2, 3)))
        return logits


class Calling(nn.Module):
    """Calls one of torch's functions with a kernel of one element."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.kernel, self.last = nn.Parameter(torch.randn(5, 3, 1, 1)), nn.Linear(5, CLASSES)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(torch.tanh(self.function(x, self.kernel)).mean((2, 3)))
        return logits


class Affected(OperatorWatch):
    """Counts derivatives of convolutions, and those among them that oneDNN computes beyond its memory."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = self.affected = 0

    def ran(self, operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        if operator is torch.ops.aten.convolution_backward:
            weight, stride, transposed = args[2], args[4], args[7]
            few = weight.shape[1] < CHANNELS and weight.shape[2:].numel() == 1
            self.convolutions += 1
            self.affected += few and max(stride) > 1 and not transposed


def live(module: nn.Module, x: Tensor, folder: Path) -> wsb.Classifier:
    return wsb.from_module(module)


def channels_last(module: nn.Module, x: Tensor, folder: Path) -> wsb.Classifier:
    return wsb.from_module(module.to(memory_format=torch.channels_last))


def exported(module: nn.Module, x: Tensor, folder: Path) -> wsb.Classifier:
    return wsb.from_module(_program(module, x).module())


def pt2(module: nn.Module, x: Tensor, folder: Path) -> wsb.Classifier:
    torch.export.save(_program(module, x), folder / "model.pt2")
    return wsb.load_model(folder / "model.pt2")


def decomposed(module: nn.Module, x: Tensor, folder: Path) -> wsb.Classifier:
    torch.export.save(_program(module, x).run_decompositions(), folder / "model.pt2")
    return wsb.load_model(folder / "model.pt2")


def _program(module: nn.Module, x: Tensor) -> torch.export.ExportedProgram:
    return torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("n", min=2)},))


def torchscript(module: nn.Module, x: Tensor, folder: Path) -> wsb.Classifier:
    torch.jit.trace(module, x).save(folder / "model.pt")  # type: ignore[no-untyped-call]
    return wsb.load_model(folder / "model.pt")


def onnx(module: nn.Module, x: Tensor, folder: Path) -> wsb.Classifier:
    axes = {"x": {0: "n"}}
    torch.onnx.export(module, (x,), folder / "model.onnx", dynamo=False, input_names=["x"], dynamic_axes=axes)
    return wsb.load_model(folder / "model.onnx")


def certified(classifier: wsb.Classifier, x: Tensor, dtype: Any) -> CertifiedInterval:
    batch = wsb.Batch(x.numpy(), (torch.arange(SAMPLES) % CLASSES).numpy())
    # A few products take all derivatives that many do.
    options = wsb.Options(dtype=dtype, moments="none", ends="largest", max_products=4)
    enclosure = wsb.analyze(classifier, batch, options).enclosure
    assert enclosure is not None
    return enclosure.lambda_max


ROUTES = [live, channels_last, exported, pt2, decomposed, torchscript, onnx]


@pytest.mark.parametrize(
    ("route", "transposed"),
    [
        *((live, True), (onnx, True)),
        *(full(each, each in (live, onnx)) for each in (channels_last, exported, decomposed, torchscript)),
        *(full(each, each not in (live, onnx)) for each in ROUTES),
    ],
)
def test_no_derivative_of_a_strided_shortcut_is_computed_beyond_memory(
    route: Callable[[nn.Module, Tensor, Path], wsb.Classifier], transposed: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    x = torch.randn(SAMPLES, 6, 6, 3) if transposed else torch.randn(SAMPLES, 3, 6, 6)
    classifier = route(Residual(transposed=transposed).eval(), x, tmp_path)
    with Affected() as watch:
        single = certified(classifier, x, "float32")
    assert watch.convolutions
    assert not watch.affected
    double = certified(classifier, x, "float64")
    assert single.lower <= double.upper
    assert double.lower <= single.upper


CALLS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "conv2d": lambda x, w: functional.conv2d(x, w, stride=2),
    "named arguments": lambda x, w: functional.conv2d(input=x, weight=w, stride=(2, 1), padding=1),
    "a named padding": lambda x, w: functional.conv2d(x, w, None, 3, "valid"),
    "an overload": lambda x, w: torch.ops.aten.conv2d.padding(x, w, None, [2], "valid"),
    "convolution": lambda x, w: torch.convolution(x, w, None, [2, 2], [1, 1], [1, 1], False, [0, 0], 1),
    "single images": lambda x, w: torch.stack([functional.conv2d(each, w, stride=2) for each in x]),
    "vmap": lambda x, w: torch.func.vmap(lambda each: functional.conv2d(each, w, stride=2))(x),
}


@pytest.mark.slow
@pytest.mark.parametrize("call", thinned(CALLS, 3))
def test_a_module_may_call_a_convolution_by_any_name(call: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(SAMPLES, 3, 6, 6)
    with Affected() as watch:
        certified(wsb.from_module(Calling(CALLS[call])), x, "float32")
    assert watch.convolutions
    assert not watch.affected


@pytest.mark.parametrize("padding", [0, 2, (1, 0)])
def test_the_convolution_stays_the_same(padding: Any) -> None:
    x, weight = torch.randn(2, 3, 7, 5, dtype=torch.float64), torch.randn(4, 3, 1, 1, dtype=torch.float64)
    thinned, stride, pads = unit_stride(x, weight, (2, 3), padding)
    assert (stride, pads) == ([1, 1], [0, 0])
    expected = functional.conv2d(x, weight, stride=(2, 3), padding=padding)
    torch.testing.assert_close(functional.conv2d(thinned, weight, stride=stride, padding=pads), expected)


def test_a_convolution_of_many_channels_keeps_its_stride() -> None:
    x, weight = torch.randn(2, CHANNELS, 4, 4), torch.randn(4, CHANNELS, 1, 1)
    assert unit_stride(x, weight, 2)[1] == 2
