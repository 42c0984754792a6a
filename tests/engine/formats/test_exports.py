"""Networks as torch.onnx and skl2onnx write them, through analyze(), against torch.func.hessian of the same weights."""

from __future__ import annotations

import contextlib
import io
import itertools
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from support.exports import share_operators
from support.forms import crossed, full
from torch import Tensor, nn

import wsb_engine as wsb

ACTIVATIONS = {
    "tanh": nn.Tanh(),
    "sigmoid": nn.Sigmoid(),
    "softplus": nn.Softplus(),
    "gelu": nn.GELU(),
    "gelu_tanh": nn.GELU(approximate="tanh"),
    "silu": nn.SiLU(),
    "elu": nn.ELU(),
}
EXPORTERS = ("dynamo", "legacy")
HEADS = {"none": [], "softmax": [nn.Softmax(dim=1)], "log_softmax": [nn.LogSoftmax(dim=-1)]}


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def exported(module: nn.Module, x: Tensor, *, dynamo: bool, opset: int | None = None) -> bytes:
    buffer = io.BytesIO()
    with quietly():
        if dynamo:
            share_operators()
            program = torch.onnx.export(
                module, (x[:2],), dynamo=True, opset_version=opset, dynamic_shapes=({0: torch.export.Dim("n")},)
            )
            assert program is not None
            program.save(buffer)
        else:
            torch.onnx.export(
                *(module, (x[:2],), buffer),
                dynamo=False,
                opset_version=opset,
                input_names=["x"],
                dynamic_axes={"x": {0: "n"}},
            )
    return buffer.getvalue()


def exact(parameters: dict[str, Tensor], loss: object) -> Tensor:
    """Eigenvalues of torch.func.hessian of a loss of named tensors, descending; float64."""
    sizes = [tensor.numel() for tensor in parameters.values()]

    def flat_loss(flat: Tensor) -> Tensor:
        pieces = zip(parameters.items(), flat.split(sizes), strict=True)
        return loss({name: piece.view_as(tensor) for (name, tensor), piece in pieces})

    H = torch.func.hessian(flat_loss)(torch.cat([tensor.detach().reshape(-1) for tensor in parameters.values()]))
    return torch.linalg.eigvalsh(H).flip(0)


def check(report: wsb.Report, eigenvalues: Tensor) -> None:
    assert report.model.architecture == "mlp"
    assert report.moments is not None
    assert report.moments.method == "closed_form"
    assert report.moments.trace == pytest.approx(float(eigenvalues.sum()), rel=1e-6)
    assert report.moments.frobenius_squared == pytest.approx(float(eigenvalues.square().sum()), rel=1e-6)
    assert report.spectrum is not None
    scale = float(eigenvalues.abs().max())
    np.testing.assert_allclose(report.spectrum.eigenvalues, eigenvalues.numpy(), rtol=0, atol=1e-6 * scale)
    assert report.model.parity is not None
    assert all(check.passed for check in report.checks), report.checks


@pytest.mark.parametrize(
    ("layers", "exporter"),
    crossed(
        [*((name, "none") for name in ACTIVATIONS), ("tanh", "softmax"), ("gelu", "log_softmax")], EXPORTERS, keep=3
    ),
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_a_torch_export_equals_its_module(layers: tuple[str, str], exporter: str) -> None:
    (activation, head), dynamo = layers, exporter == "dynamo"
    torch.manual_seed(0)
    body = [nn.Flatten(), nn.Linear(6, 5), ACTIVATIONS[activation], nn.Linear(5, 4), ACTIVATIONS[activation]]
    module = nn.Sequential(*body, nn.Linear(4, 3), *HEADS[head]).eval()
    x, y = torch.randn(9, 1, 2, 3), torch.randint(3, (9,))
    report = wsb.analyze(
        wsb.load_model(exported(module, x, dynamo=dynamo)), wsb.Batch(x, y), wsb.Options(spectrum="dense")
    )
    plain = module[:6].double()

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(torch.func.functional_call(plain, parameters, (x.double(),)), y)

    check(report, exact(dict(plain.named_parameters()), loss))


@pytest.mark.parametrize(
    ("activation", "dynamo", "opset"),
    [
        ("gelu", False, 13),
        full("gelu", True, 18),
        ("gelu_tanh", False, 18),
        full("gelu", False, 18),
        full("gelu_tanh", False, 13),
        full("gelu_tanh", True, 18),
    ],
)
def test_a_gelu_that_is_written_out_keeps_the_closed_form_of_its_own_constants(
    activation: str, dynamo: bool, opset: int
) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 5), ACTIVATIONS[activation], nn.Linear(5, 3)).eval()
    x, y = 3 * torch.randn(9, 6), torch.randint(3, (9,))
    data = exported(module, x, dynamo=dynamo, opset=opset)
    report = wsb.analyze(wsb.load_model(data), wsb.Batch(x, y), wsb.Options(spectrum="dense"))
    plain = module.double()

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(torch.func.functional_call(plain, parameters, (x.double(),)), y)

    check(report, exact(dict(plain.named_parameters()), loss))


@pytest.mark.parametrize(
    ("activation", "classes", "zipmap"),
    [
        ("tanh", 2, False),
        ("logistic", 3, True),
        *itertools.starmap(full, [("tanh", 2, True), ("tanh", 3, False), ("tanh", 3, True)]),
        *itertools.starmap(full, [("logistic", 2, False), ("logistic", 2, True), ("logistic", 3, False)]),
    ],
)
def test_a_scikit_learn_classifier_equals_its_weights(activation: str, classes: int, zipmap: bool) -> None:
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import FloatTensorType

    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 4)).astype(np.float32)
    y = np.argmax(x[:, :classes] + 0.1 * rng.normal(size=(30, classes)), axis=1)
    model = MLPClassifier(hidden_layer_sizes=(5, 4), activation=activation, max_iter=80, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(x, y)
    with quietly():
        proto = convert_sklearn(
            model, initial_types=[("x", FloatTensorType([None, 4]))], options={"zipmap": zipmap}, target_opset=15
        )
    report = wsb.analyze(wsb.load_model(proto.SerializeToString()), wsb.Batch(x, y), wsb.Options(spectrum="dense"))
    single = [(f"w{i}", w) for i, w in enumerate(model.coefs_)] + [
        (f"b{i}", b) for i, b in enumerate(model.intercepts_)
    ]
    parameters = {name: torch.from_numpy(array.astype(np.float32)).double() for name, array in single}
    phi = torch.tanh if activation == "tanh" else torch.sigmoid
    inputs, labels = torch.from_numpy(x).double(), torch.from_numpy(y)

    def loss(named: dict[str, Tensor]) -> Tensor:
        a = inputs
        for i, last in enumerate([False] * (len(model.coefs_) - 1) + [True]):
            h = a @ named[f"w{i}"] + named[f"b{i}"]
            a = h if last else phi(h)
        if classes == 2:
            return nn.functional.binary_cross_entropy_with_logits(a[:, 0], labels.double())
        return nn.functional.cross_entropy(a, labels)

    check(report, exact(parameters, loss))
    assert report.loss.kind == ("binary_cross_entropy" if classes == 2 else "cross_entropy")
