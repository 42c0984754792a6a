"""A language model, a classifier of pixels, labels by themselves and a regressor, from files of each format."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from support.exports import onnx, traced
from support.forms import crossed, full
from support.pt2 import exported
from torch import Tensor, nn

import wsb_engine as wsb
from wsb_engine.model import Classifier

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")


def pt2(module: nn.Module, example: Tensor) -> Classifier:
    return wsb.load_model(exported(module.double(), example))


FORMATS: dict[str, Callable[[nn.Module, Tensor], Classifier]] = {"onnx": onnx, "torchscript": traced, "pt2": pt2}


class Language(nn.Module):
    """Tokens as numbers, mixed with those before them, and a distribution over the next one."""

    def __init__(self, end: nn.Module | None) -> None:
        super().__init__()
        self.mix, self.head, self.end = nn.Linear(3, 4), nn.Linear(4, 5), end or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.end(self.head(torch.tanh(self.mix(x).cumsum(1))))
        return z


class Segments(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.head(torch.tanh(self.body(x)))
        return z


@dataclass
class Case:
    module: nn.Module
    x: Tensor
    y: Tensor
    loss: Callable[[Tensor], Tensor]
    """Of the module without its end."""
    options: dict[str, object]
    head: str = "none"


def perceptron(*end: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3), *end)


def case(name: str) -> Case:
    torch.manual_seed(0)
    tokens, pixels = torch.randint(5, (4, 6)), torch.randint(3, (2, 4, 5))
    tokens[1, 2:] = -100
    labels, numbers = torch.randint(2, (6, 3)), torch.randn(6, 3).double()
    texts, images, rows = torch.randn(4, 6, 3), torch.randn(2, 1, 4, 5), torch.randn(6, 4)
    CE, BCE = nn.CrossEntropyLoss(), nn.BCEWithLogitsLoss()

    def of_tokens(z: Tensor) -> Tensor:
        return CE(z.flatten(0, 1), tokens.flatten())

    found = {
        "language": lambda: Case(Language(None), texts, tokens, of_tokens, {}),
        "language, softmax": lambda: Case(Language(nn.LogSoftmax(-1)), texts, tokens, of_tokens, {}, "log_softmax"),
        "segments": lambda: Case(Segments(), images, pixels, lambda z: CE(z, pixels), {"label_smoothing": 0.0}),
        "labels": lambda: Case(
            perceptron(nn.Sigmoid()), rows, labels, lambda z: BCE(z, labels.double()), {"loss": "multilabel"}, "sigmoid"
        ),
        "numbers": lambda: Case(
            perceptron(), rows, numbers, lambda z: nn.MSELoss()(z, numbers), {"loss": "squared_error"}
        ),
    }
    return found[name]()


def without_end(module: nn.Module) -> nn.Module:
    if isinstance(module, Language):
        module.end = nn.Identity()
        return module
    ends = isinstance(module, nn.Sequential) and isinstance(module[-1], nn.Sigmoid)
    return module[:-1] if ends else module  # type: ignore[index]


@pytest.mark.parametrize(
    ("name", "format_"),
    [
        *crossed(["language", "language, softmax"], FORMATS),
        *itertools.starmap(full, itertools.product(["segments", "labels", "numbers"], FORMATS)),
    ],
)
def test_a_file_gives_the_hessian_of_its_loss(name: str, format_: str) -> None:
    given = case(name)
    given.module.float()
    classifier = FORMATS[format_](given.module, given.x.float() if format_ != "pt2" else given.x.double())
    given.module.double()
    report = wsb.analyze(
        classifier, wsb.Batch(given.x, given.y), wsb.Options(**given.options, moments="basis", spectrum="dense")
    )
    body = without_end(given.module)
    parameters = list(body.parameters())
    theta = nn.utils.parameters_to_vector(parameters).detach()
    names = [name for name, _ in body.named_parameters()]

    def loss(flat: Tensor) -> Tensor:
        pieces = flat.split([p.numel() for p in parameters])
        values = {n: v.view_as(p) for n, v, p in zip(names, pieces, parameters, strict=True)}
        return given.loss(torch.func.functional_call(body, values, (given.x.double(),)))

    H = torch.autograd.functional.hessian(loss, theta)
    assert report.model.head == given.head
    assert report.loss.value == pytest.approx(loss(theta).item(), rel=1e-11)
    assert report.moments is not None
    assert report.moments.trace == pytest.approx(float(H.trace()), rel=1e-10)
    assert report.spectrum is not None
    assert report.spectrum.eigenvalues[0] == pytest.approx(float(torch.linalg.eigvalsh(H)[-1]), rel=1e-10)
    if format_ == "onnx":
        assert report.model.parity is not None
        assert report.model.parity.max_abs_error < 1e-5
    assert not report.failed_checks


def test_a_sigmoid_for_each_label_without_the_loss_names_it() -> None:
    given = case("labels")
    classifier = onnx(given.module, given.x)
    with pytest.raises(wsb.ModelError, match="set loss to multilabel") as caught:
        wsb.analyze(classifier, wsb.Batch(given.x, [0, 1, 2, 0, 1, 2]))
    assert caught.value.code == "multilabel_unsupported"
