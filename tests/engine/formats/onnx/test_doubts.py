"""Files of torch's older exporter, which has no record: buffers told by their names, and what is named as in doubt."""

from __future__ import annotations

import io
from collections.abc import Callable

import onnx
import pytest
import torch
from support.eager import eager_hessian
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

import wsb_engine as wsb

X = torch.randn(6, 2, 5, generator=torch.Generator().manual_seed(1))
Y = torch.arange(6) % 3
pytestmark = pytest.mark.filterwarnings("ignore")


class Sequences(nn.Module):
    """A layer that is normalised or pruned sees each element of a sequence, so that its weight is multiplied."""

    def __init__(self, change: Callable[[nn.Linear], object], *, rows: bool = False) -> None:
        super().__init__()
        self.rows, self.first, self.last = rows, nn.Linear(5, 4), nn.Linear(4, 3)
        change(self.first)

    def forward(self, x: Tensor) -> Tensor:
        h = x[:, 0] if self.rows else x
        h = torch.tanh(self.first(h))
        z: Tensor = self.last(h if self.rows else h.mean(1))
        return z


class Distances(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.points = nn.Linear(5, 4), nn.Parameter(torch.randn(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        return -torch.cdist(torch.tanh(self.first(x[:, 0])), self.points)


class Projected(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.fixed = nn.Linear(5, 4), nn.Linear(3, 3), torch.randn(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.last(torch.tanh(F.linear(torch.tanh(self.first(x[:, 0])), self.fixed.to(x.dtype))))
        return z


class Fixed(nn.Module):
    """Has nothing but numbers in its code."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x[:, 0, :2], torch.tensor([[0.3, -0.2], [0.5, 0.1], [-0.7, 0.4]]))


def _prune(layer: nn.Linear) -> None:
    prune.l1_unstructured(layer, "weight", amount=0.4)


def exported(module: nn.Module, *, fold: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.onnx.export(module, (X[:2],), buffer, dynamo=False, do_constant_folding=fold)
    return buffer.getvalue()


def analysed(data: bytes, *parameters: str) -> wsb.Report:
    options = wsb.Options(spectrum="dense", moments="none", parameters=parameters or ("*",))
    return wsb.analyze(wsb.load_model(data), wsb.Batch(X, Y), options)


def left_out(report: wsb.Report) -> list[str]:
    return [tensor.name for tensor in report.model.parameters.left_out or ()]


def check(report: wsb.Report, module: nn.Module) -> None:
    hessian = eager_hessian(module.double(), X.double(), Y)
    assert report.model.parameters.count == len(hessian)
    assert report.spectrum is not None
    assert report.spectrum.eigenvalues[0] == pytest.approx(float(torch.linalg.eigvalsh(hessian)[-1]), rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "rows", "fold", "names"),
    [
        (nn.utils.spectral_norm, True, True, ["first.weight_u", "first.weight_v"]),
        (nn.utils.spectral_norm, False, False, ["first.weight_u", "first.weight_v"]),
        (_prune, False, False, ["first.weight_mask"]),
    ],
)
def test_buffers_beside_a_weight_are_left_out_and_named(
    change: Callable[[nn.Linear], object], rows: bool, fold: bool, names: list[str]
) -> None:
    torch.manual_seed(3)
    module = Sequences(change, rows=rows).eval()
    report = analysed(exported(module, fold=fold))
    assert sorted(left_out(report)) == names
    (message,) = report.messages("left_out_parameters")
    assert all(repr(name) in message for name in names)
    check(report, module)


def test_buffers_of_a_parametrization_are_left_out() -> None:
    torch.manual_seed(3)
    module = Sequences(nn.utils.spectral_norm).eval()
    model = onnx.load_from_string(exported(module))
    parts = {"weight_orig": "original", "weight_u": "0._u", "weight_v": "0._v"}
    names = {f"first.{old}": f"first.parametrizations.weight.{new}" for old, new in parts.items()}
    for tensor in model.graph.initializer:  # as earlier versions of torch exported the layer
        tensor.name = names.get(tensor.name, tensor.name)
    for node in model.graph.node:
        node.input[:] = [names.get(each, each) for each in node.input]
    report = analysed(model.SerializeToString())
    assert sorted(left_out(report)) == [f"first.parametrizations.weight.0._{each}" for each in "uv"]
    check(report, module)


def test_vectors_that_are_learned_count_whatever_their_names() -> None:
    class Learned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight_orig, self.last = nn.Parameter(torch.randn(4, 5)), nn.Linear(4, 3)
            self.weight_u, self.weight_v = nn.Parameter(torch.randn(4, 1)), nn.Parameter(torch.randn(1, 5))

        def forward(self, x: Tensor) -> Tensor:
            h = x[:, 0] @ self.weight_orig.T + (x[:, 0] @ self.weight_v.T) @ self.weight_u.T
            return self.last(torch.tanh(h))  # type: ignore[no-any-return]

    torch.manual_seed(3)
    module = Learned().eval()
    check(analysed(exported(module)), module)


def test_what_was_folded_elsewhere_than_in_a_weight_is_named() -> None:
    torch.manual_seed(3)
    report = analysed(exported(Distances().eval()))
    (name,) = left_out(report)
    assert name.startswith("onnx::Sub_")
    (message,) = report.messages("left_out_parameters")
    assert repr(name) in message
    assert analysed(exported(Distances().eval()), "*", "onnx::Sub_*").model.parameters.count == 24 + 12


def test_numbers_in_the_code_are_no_parameters_of_a_module_that_has_others() -> None:
    torch.manual_seed(3)
    module = Projected().eval()
    data = exported(module)
    report = analysed(data)
    (name,) = left_out(report)
    (message,) = report.messages("left_out_parameters")
    assert repr(name) in message
    assert "constants of the module's code" in message
    check(report, module)
    module.fixed = nn.Parameter(module.fixed)
    check(analysed(data, "*", name), module)


def test_numbers_in_the_code_count_if_nothing_else_does() -> None:
    assert analysed(exported(Fixed())).model.parameters.count == 6


@pytest.mark.parametrize(("change", "named"), [(_prune, True), (lambda layer: None, False)])
def test_a_weight_with_zeros_may_be_a_product_with_a_mask(change: Callable[[nn.Linear], object], named: bool) -> None:
    torch.manual_seed(3)
    messages = analysed(exported(Sequences(change).eval())).messages("derived_parameters")
    assert len(messages) == named
    assert all("those of a mask" in message for message in messages)
