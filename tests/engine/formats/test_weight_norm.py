"""Weight normalisation, of which torch's own second derivative is not symmetric: live, traced and exported."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from support.forms import full
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import wsb_engine as wsb

X = np.random.default_rng(0).standard_normal((6, 3, 5)).astype(np.float32)
Y = np.arange(6) % 3


class Net(nn.Module):
    def __init__(self, normalise: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = normalise(nn.Conv1d(3, 4, 3))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.features(x)).mean(2))  # type: ignore[no-any-return]


def current(layer: nn.Module) -> nn.Module:
    return parametrizations.weight_norm(layer)


def whole(layer: nn.Module) -> nn.Module:
    return parametrizations.weight_norm(layer, dim=None)


def other_axis(layer: nn.Module) -> nn.Module:
    return parametrizations.weight_norm(layer, dim=2)


def deprecated(layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.weight_norm(layer)


def live(net: nn.Module, _: Path) -> wsb.Classifier:
    return wsb.from_module(net)


def traced(net: nn.Module, folder: Path) -> wsb.Classifier:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(net, torch.from_numpy(X), check_trace=False), folder / "model.pt")
    return wsb.load_model(folder / "model.pt")


def exported(net: nn.Module, folder: Path) -> wsb.Classifier:
    torch.export.save(torch.export.export(net, (torch.from_numpy(X),)), folder / "model.pt2")
    return wsb.load_model(folder / "model.pt2")


def decomposed(net: nn.Module, folder: Path) -> wsb.Classifier:
    program = torch.export.export(net, (torch.from_numpy(X),)).run_decompositions()
    torch.export.save(program, folder / "model.pt2")
    return wsb.load_model(folder / "model.pt2")


def largest_eigenvalue(net: Net) -> float:
    """By double backward in float64, of the norm as its definition says."""
    parameters = {name: tensor.detach().double() for name, tensor in net.named_parameters()}
    sizes = [tensor.numel() for tensor in parameters.values()]
    size, direction = (
        next(name for name in parameters if name.endswith(ends))
        for ends in (("original0", "weight_g"), ("original1", "weight_v"))
    )
    axes = [axis for axis, length in enumerate(parameters[size].shape) if length == 1] or [0, 1, 2]

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split(sizes)
        p = {name: part.reshape(each.shape) for part, (name, each) in zip(parts, parameters.items(), strict=True)}
        weight = p[size] * p[direction] / p[direction].square().sum(axes, keepdim=True).sqrt()
        a = torch.tanh(F.conv1d(torch.from_numpy(X).double(), weight, p["features.bias"])).mean(2)
        return F.cross_entropy(F.linear(a, p["head.weight"], p["head.bias"]), torch.from_numpy(Y))

    H = torch.autograd.functional.hessian(loss, torch.cat([each.reshape(-1) for each in parameters.values()]))
    return float(torch.linalg.eigvalsh(H)[-1])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("normalise", "read"),
    [
        full(current, live),
        (current, traced),
        full(current, exported),
        full(current, decomposed),
        full(whole, exported),
        (other_axis, live),
        full(deprecated, live),
    ],
)
def test_the_enclosure_holds_the_eigenvalue_of_the_norm_written_out(
    normalise: Callable[[nn.Module], nn.Module], read: Callable[[nn.Module, Path], wsb.Classifier], tmp_path: Path
) -> None:
    net = Net(normalise).eval()
    classifier = read(net, tmp_path)
    batch = wsb.Batch({each.name: X for each in classifier.inputs} or X, Y)
    report = wsb.analyze(classifier, batch, wsb.Options(moments="none"))
    assert report.enclosure is not None
    found, truth = report.enclosure.lambda_max, largest_eigenvalue(net)
    assert found.lower <= truth * (1 + 1e-12)
    assert found.upper >= truth * (1 - 1e-12)
    assert found.upper - found.lower <= 1e-6 * truth
