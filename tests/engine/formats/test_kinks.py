"""Kinks and conventions of live modules: what is named, and that λ_max is that of eager double backward."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.between import Between
from support.forms import full, thinned
from torch import Tensor, nn

import wsb_engine as wsb

pytestmark = pytest.mark.filterwarnings(
    "ignore:There is a performance drop:UserWarning", "ignore:.*is deprecated:DeprecationWarning"
)


SMOOTH: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "elu": F.elu,
    "celu": lambda h: F.celu(h, 2.0),
    "mish": F.mish,
    "layer norm": lambda h: F.layer_norm(h, (6,)),
    "rms by hand": lambda h: h / (h.square().mean(1, keepdim=True) + 1e-5).sqrt(),
    "guard of a softmax": lambda h: torch.where(torch.isnan(h.softmax(1)), 0.0, h.softmax(1)),
    "guard against a sum of 0": lambda h: h / torch.where(h.sum(1, keepdim=True) == 0, 1.0, h.sum(1, keepdim=True)),
    "mask of the inputs": lambda h: h * (torch.ones(6, dtype=h.dtype) > 0),
    "softplus": F.softplus,
    "log-sum-exp": lambda h: h * torch.logsumexp(h, 1, keepdim=True),
    "scaled root": lambda h: (3 * h**2).mean(1, keepdim=True).sqrt() * h,
    "distance": lambda h: h * torch.cdist(h, torch.zeros_like(h[:1])),
    "cosine": lambda h: h * F.cosine_similarity(h, h + 1, dim=1)[:, None],
}
KINKED: dict[str, Callable[[Tensor], Tensor]] = {
    "where": lambda h: torch.where(h > 0, h, torch.zeros_like(h)),
    "mask": lambda h: h * (h > 0),
    "masked fill": lambda h: h.masked_fill(h <= 0, 0),
    "root of a square": lambda h: (h * h).sqrt(),
    "power of a square": lambda h: (h**2) ** 0.5,
    "L1": lambda h: h / h.norm(p=1, dim=1, keepdim=True),
    "largest": lambda h: h / h.abs().amax(1, keepdim=True),
    "fmod": lambda h: torch.fmod(h, 0.3),
    "remainder": lambda h: torch.remainder(h, 0.3),
    "running maximum": lambda h: h.cummax(1)[0],
    "gather of an argmax": lambda h: h * h.gather(1, h.argmax(1, keepdim=True)),
    "copysign": lambda h: torch.copysign(h * h, h),
    "hardsigmoid": F.hardsigmoid,
    "round": lambda h: h * torch.round(h.detach()),
    "integers": lambda h: h * h.int(),
    "selu": F.selu,
    "prelu": lambda h: F.prelu(h, torch.tensor(0.1, dtype=h.dtype)),
    "rrelu": F.rrelu,
    "sort": lambda h: h.sort(1)[0],
}


def report_of(function: Callable[[Tensor], Tensor], x: np.ndarray) -> tuple[wsb.Report, nn.Module, wsb.Batch]:
    module, batch = Between(function).double(), wsb.Batch(x, np.arange(len(x)) % 3)
    return wsb.analyze(wsb.from_module(module), batch, wsb.Options(spectrum="dense")), module.eval(), batch


def by_differences(module: nn.Module, batch: wsb.Batch) -> float:
    """λ_max from central differences of the eager gradient."""
    parameters = list(module.parameters())
    start = [p.detach().clone() for p in parameters]
    x, y = batch.x["x"], torch.from_numpy(batch.y)

    def gradient() -> Tensor:
        return torch.cat([g.flatten() for g in torch.autograd.grad(F.cross_entropy(module(x), y), parameters)])

    columns, step = [], 1e-6
    for p, at in zip(parameters, start, strict=True):
        for i in range(p.numel()):
            ends = []
            for sign in (1, -1):
                with torch.no_grad():
                    p.copy_(at)
                    p.view(-1)[i] += sign * step
                ends.append(gradient())
            with torch.no_grad():
                p.copy_(at)
            columns.append((ends[0] - ends[1]) / (2 * step))
    H = torch.stack(columns)
    return float(torch.linalg.eigvalsh((H + H.T) / 2)[-1])


X = np.random.default_rng(0).normal(size=(7, 4))


@pytest.mark.parametrize("name", thinned([*SMOOTH, *KINKED], 5))
def test_kinks_are_named_and_the_curvature_is_that_of_the_pieces(name: str) -> None:
    report, module, batch = report_of({**SMOOTH, **KINKED}[name], X)
    assert report.model.smooth == (name in SMOOTH), report.model.nonsmooth_operators
    assert report.spectrum is not None
    assert report.spectrum.eigenvalues[0] == pytest.approx(by_differences(module, batch), rel=1e-5, abs=1e-7)
    assert all(check.passed for check in report.checks)


NORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "vector norm": lambda h: h / (torch.linalg.vector_norm(h, dim=1, keepdim=True) + 0.1),
    "normalize": lambda h: F.normalize(h, dim=1),
    "largest": lambda h: h / (h.norm(p=float("inf"), dim=1, keepdim=True) + 0.1),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", thinned(NORMS, 2))
def test_a_norm_of_a_dead_sample_has_torchs_derivatives(name: str) -> None:
    x = np.concatenate([X, np.full((1, 4), -50.0)])
    module = Between(lambda h: NORMS[name](torch.relu(h))).double()
    with torch.no_grad():
        module.first.weight.abs_()
    batch = wsb.Batch(x, np.arange(len(x)) % 3)
    report = wsb.analyze(wsb.from_module(module), batch, wsb.Options(spectrum="dense"))
    point = tuple(p.detach() for p in module.parameters())
    names = [n for n, _ in module.named_parameters()]
    y = torch.from_numpy(batch.y)

    def loss(*parameters: Tensor) -> Tensor:
        z = torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), (batch.x["x"],))
        return F.cross_entropy(z, y)

    blocks = torch.autograd.functional.hessian(loss, point)
    rows = [
        torch.cat([block.reshape(p.numel(), -1) for block in row], dim=1) for p, row in zip(point, blocks, strict=True)
    ]
    H = torch.cat(rows)
    assert report.spectrum is not None
    truth = float(torch.linalg.eigvalsh((H + H.T) / 2)[-1])
    assert report.spectrum.eigenvalues[0] == pytest.approx(truth, rel=1e-10)


RECURRENT: dict[str, Callable[[], nn.Module]] = {
    "lstm": lambda: nn.LSTM(3, 4, batch_first=True),
    "lstm, two layers both ways": lambda: nn.LSTM(3, 4, num_layers=2, bidirectional=True, batch_first=True),
    "lstm, projected": lambda: nn.LSTM(3, 4, proj_size=2, batch_first=True),
    "gru, no bias": lambda: nn.GRU(3, 4, bias=False, batch_first=True),
    "rnn": lambda: nn.RNN(3, 4, batch_first=True),
    "rnn, relu": lambda: nn.RNN(3, 4, nonlinearity="relu", batch_first=True),
}
SHORT = ("lstm, projected", "rnn, relu")


@pytest.mark.parametrize("name", [name if name in SHORT else full(name) for name in RECURRENT])
def test_live_recurrent_layers_have_their_curvature(name: str) -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.body = RECURRENT[name]()
            self.out = nn.LazyLinear(3)

        def forward(self, x: Tensor) -> Tensor:
            z: Tensor = self.out(self.body(x)[0][:, -1])
            return z

    module, rng = Last().double(), np.random.default_rng(1)
    batch = wsb.Batch(rng.normal(size=(5, 3, 3)), rng.integers(0, 3, 5))
    module(batch.x["x"])
    report = wsb.analyze(wsb.from_module(module), batch, wsb.Options(spectrum="dense", moments="none"))
    assert report.spectrum is not None
    assert report.spectrum.eigenvalues[0] == pytest.approx(by_differences(module.eval(), batch), rel=1e-5)


def test_an_operator_without_derivatives_is_refused_with_a_code() -> None:
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, h: Tensor) -> Tensor:
            return h.clone()

        @staticmethod
        def backward(ctx: object, g: Tensor) -> Tensor:
            return g

    module = Between(Once.apply).double()
    with pytest.raises(wsb.ModelError) as caught:
        wsb.analyze(wsb.from_module(module), wsb.Batch(X, np.arange(7) % 3))
    assert caught.value.code == "not_differentiable"
