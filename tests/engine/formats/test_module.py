"""Live modules: structure, heads, smoothness, independence from later training."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from support.eager import eager_hessian
from support.forms import full, thinned
from torch import Tensor, nn
from torch.nn import functional as F

import wsb_engine as wsb

X = torch.randn(7, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.tensor([0, 1, 2, 0, 1, 2, 0])


def mlp(*extra: nn.Module, first: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    body = [nn.Flatten(), nn.Linear(4, 5), first or nn.Tanh(), nn.Dropout(0.5), nn.Linear(5, 3), *extra]
    return nn.Sequential(*body).double()


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x.view(x.size(0), -1)))
        return F.log_softmax(F.linear(h, self.b.weight, self.b.bias), dim=1)


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        z: Tensor = self.b(x + torch.tanh(self.a(x)))
        return z if z.shape[0] > 0 else -z


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Linear(4, 4), nn.Linear(4, 3)
        self.b = self.a

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(torch.tanh(self.b(torch.tanh(self.a(x.flatten(1))))))
        return out


def exact_moments(module: nn.Module, loss: nn.Module | None = None) -> tuple[float, float]:
    module = module.eval()
    parameters = {name: p.detach() for name, p in module.named_parameters()}
    sizes = [p.numel() for p in parameters.values()]

    def objective(flat: Tensor) -> Tensor:
        pieces = {n: piece.view_as(p) for (n, p), piece in zip(parameters.items(), flat.split(sizes), strict=True)}
        return (loss or nn.CrossEntropyLoss())(torch.func.functional_call(module, pieces, (X,)), Y)

    H = torch.func.hessian(objective)(torch.cat([p.reshape(-1) for p in parameters.values()]))
    return float(H.trace()), float(H.square().sum())


@pytest.mark.parametrize(
    ("module", "architecture", "head"),
    [
        (mlp(), "mlp", "none"),
        full(mlp(nn.Identity()), "mlp", "none"),
        (mlp(first=nn.GELU(approximate="tanh")), "mlp", "none"),
        full(mlp(first=nn.Softplus()), "mlp", "none"),
        full(mlp(first=nn.ELU()), "mlp", "none"),
        (mlp(nn.LogSoftmax(-1)), "mlp", "log_softmax"),
        (Functional().double(), "mlp", "log_softmax"),
        (Branching().double(), "general", "none"),
        (Tied().double(), "general", "none"),
        (mlp(first=nn.Softplus(beta=2)), "general", "none"),
        full(mlp(first=nn.Mish()), "general", "none"),
    ],
)
def test_moments_equal_second_derivatives_of_the_module(module: nn.Module, architecture: str, head: str) -> None:
    report = wsb.analyze(wsb.from_module(module), wsb.Batch(X, Y), needs=["moments"])
    t, q = exact_moments(module)
    assert report.model.architecture == architecture
    assert report.model.head == head
    assert report.model.smooth
    assert report.moments is not None
    assert report.moments.method == ("closed_form" if architecture == "mlp" else "basis")
    assert report.moments.trace == pytest.approx(t, rel=1e-10)
    assert report.moments.frobenius_squared == pytest.approx(q, rel=1e-10)


def test_a_softmax_at_the_end_is_stripped() -> None:
    plain, with_head = (wsb.analyze(wsb.from_module(m), wsb.Batch(X, Y)) for m in (mlp(), mlp(nn.Softmax(1))))
    assert with_head.model.head == "softmax"
    assert with_head.moments == plain.moments


def test_probabilities_that_no_graph_explains_are_probed() -> None:
    class Opaque(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp()

        def forward(self, x: Tensor) -> Tensor:
            z = self.body(x).exp()
            if z.sum() > 0:  # tracing can't follow
                z = z / z.sum(dim=1, keepdim=True)
            return z

    report = wsb.analyze(wsb.from_module(Opaque()), wsb.Batch(X, Y), wsb.Options(moments="none"))
    assert report.model.head == "probabilities"
    assert [w.code for w in report.warnings] == ["head_probed"]


def test_two_layers_with_nothing_between_are_still_an_mlp() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Linear(3, 3)).double()
    report = wsb.analyze(wsb.from_module(module), wsb.Batch(X, Y))
    t, q = exact_moments(module)
    assert report.model.architecture == "mlp"
    assert report.moments is not None
    assert report.moments.trace == pytest.approx(t, rel=1e-10)
    assert report.moments.frobenius_squared == pytest.approx(q, rel=1e-10)


def test_tied_tensors_are_reported_once() -> None:
    report = wsb.analyze(wsb.from_module(Tied().double()), wsb.Batch(X, Y))
    assert report.model.parameters.tied == ["a.weight", "a.bias"]
    assert report.model.parameters.count == 4 * 4 + 4 + 4 * 3 + 3


@pytest.mark.parametrize("kink", thinned([nn.LeakyReLU(), nn.ReLU(), nn.Hardswish(), nn.ELU(alpha=0.5), nn.SELU()], 3))
def test_kinks_are_reported_and_leave_no_closed_form(kink: nn.Module) -> None:
    report = wsb.analyze(wsb.from_module(mlp(first=kink)), wsb.Batch(X, Y), wsb.Options(moments="none"))
    assert not report.model.smooth
    assert report.model.nonsmooth_operators
    assert report.model.architecture == "general"
    assert "not_smooth" in [w.code for w in report.warnings]


def test_later_training_does_not_change_the_classifier() -> None:
    module = mlp()
    classifier = wsb.from_module(module)
    before = wsb.analyze(classifier, wsb.Batch(X, Y)).loss
    with torch.no_grad():
        module[1].weight.zero_()
    assert wsb.analyze(classifier, wsb.Batch(X, Y)).loss == before


def test_dropout_and_batch_norm_are_evaluated_as_in_inference() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).double()
    module.train()
    report = wsb.analyze(wsb.from_module(module), wsb.Batch(X, Y), needs=["moments"])
    assert module.training
    t, q = exact_moments(module)
    assert report.moments is not None
    assert report.moments.trace == pytest.approx(t, rel=1e-10)
    assert report.moments.frobenius_squared == pytest.approx(q, rel=1e-10)


def test_one_logit_may_come_flat() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.body = nn.Sequential(nn.Flatten(), nn.Linear(4, 1))

        def forward(self, x: Tensor) -> Tensor:
            z: Tensor = self.body(x).squeeze(1)
            return z

    report = wsb.analyze(wsb.from_module(Flat()), wsb.Batch(X, (Y > 0).long()))
    assert report.loss.kind == "binary_cross_entropy"


def test_several_inputs_are_matched_by_name() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f, self.g = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            z: Tensor = self.f(left) * torch.tanh(self.g(right))
            return z

    rows = X.flatten(1)
    report = wsb.analyze(wsb.from_module(Pair()), wsb.Batch({"right": rows, "left": 2 * rows}, Y), needs=["moments"])
    assert report.moments is not None
    assert report.moments.method == "basis"


@pytest.mark.parametrize(
    ("module", "code"),
    [
        (nn.Tanh(), "model_no_parameters"),
        (nn.Linear(4, 3).requires_grad_(False).apply(lambda m: m.weight.data.fill_(float("nan"))), "model_not_finite"),
    ],
)
def test_a_module_that_is_no_trained_classifier_is_refused(module: nn.Module, code: str) -> None:
    with pytest.raises(wsb.ModelError) as caught:
        wsb.from_module(module)
    assert caught.value.code == code


@pytest.mark.parametrize("module", [nn.Identity(), Branching()], ids=["traced", "not traceable"])
def test_only_nonlinearities_are_named_as_activations(module: nn.Module) -> None:
    body = nn.Sequential(nn.Conv2d(1, 2, 1), nn.LeakyReLU(), nn.Flatten(), nn.Linear(8, 4), nn.GELU(), module)
    expected = ("leaky_relu", "gelu")
    assert wsb.from_module(body).resolve().activations == expected


class Ending(nn.Module):
    """A layer, and a function of what it gives."""

    def __init__(self, outputs: int, end: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.end = nn.Linear(4, outputs), end

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.layer(x.flatten(1)))


class Branched(Ending):
    """The same, with a branch that tracing can't follow."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() < 1e9 else -x)


QUICK = wsb.Options(moments="none", enclosure=False)
BINARY = (Y > 0).long()
ARRANGED: dict[str, Callable[[Tensor], Tensor]] = {
    "squeeze": lambda z: torch.sigmoid(z).squeeze(-1),
    "column": lambda z: torch.sigmoid(z)[:, 0],
    "reshape": lambda z: z.sigmoid().reshape(-1, 1).flatten(),
    "identity": nn.Sequential(nn.Sigmoid(), nn.Identity(), nn.Flatten()),
}


def code_of(module: nn.Module, y: Tensor) -> str:
    with pytest.raises(wsb.ModelError) as caught:
        wsb.analyze(wsb.from_module(module.double()), wsb.Batch(X, y), QUICK)
    return caught.value.code


@pytest.mark.parametrize("name", ARRANGED)
def test_a_sigmoid_is_taken_off_under_what_arranges_its_probabilities(name: str) -> None:
    module = Ending(1, ARRANGED[name]).double()
    report = wsb.analyze(wsb.from_module(module), wsb.Batch(X, BINARY), QUICK)
    assert report.model.head == "sigmoid"
    expected = nn.BCELoss()(module(X).flatten(), BINARY.double())
    assert report.loss.value == pytest.approx(expected.item(), rel=1e-12)


def test_one_output_that_may_be_a_probability_is_asked_about() -> None:
    module = Branched(1, torch.sigmoid).double()
    assert code_of(module, BINARY) == "ambiguous_head"
    told = QUICK.model_copy(update={"head": "binary_probability"})
    report = wsb.analyze(wsb.from_module(module), wsb.Batch(X, BINARY), told)
    expected = nn.BCELoss()(module(X).flatten(), BINARY.double())
    assert report.loss.value == pytest.approx(expected.item(), rel=1e-12)


def test_what_a_layer_gives_is_a_logit_though_it_is_between_zero_and_one() -> None:
    module = Ending(1, lambda z: z.squeeze(-1)).double()
    with torch.no_grad():
        module.layer.weight.mul_(1e-3)
        module.layer.bias.fill_(0.5)
    report = wsb.analyze(wsb.from_module(module), wsb.Batch(X, BINARY), QUICK)
    assert report.model.head == "none"
    expected = nn.BCEWithLogitsLoss()(module(X), BINARY.double())
    assert report.loss.value == pytest.approx(expected.item(), rel=1e-12)


def test_several_sigmoids_are_no_distribution() -> None:
    assert code_of(Ending(3, torch.sigmoid), Y) == "multilabel_unsupported"


def test_several_outputs_that_may_be_probabilities_are_logits_with_a_warning() -> None:
    report = wsb.analyze(wsb.from_module(Branched(3, torch.sigmoid).double()), wsb.Batch(X, Y), QUICK)
    assert "head_assumed" in [warning.code for warning in report.warnings]


class InPlace(nn.Module):
    """Uses what an activation left in place of its argument."""

    def __init__(self, activation: Callable[..., Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.activation = nn.Linear(4, 5), nn.Linear(5, 3), activation

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x.flatten(1)) + 0
        changed = self.activation(h, inplace=True)
        z: Tensor = self.second(h + changed)
        return z


ACTIVATIONS: dict[str, tuple[Callable[..., Tensor], Callable[[Tensor], Tensor]]] = {
    "hardsigmoid": (F.hardsigmoid, lambda h: (h / 6 + 0.5).clamp(0, 1)),
    "mish": (F.mish, lambda h: h * torch.tanh(torch.log1p(torch.exp(h)))),
    "rrelu": (F.rrelu, lambda h: torch.where(h >= 0, h, h * 11 / 48)),
    "silu": (F.silu, lambda h: h / (1 + torch.exp(-h))),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_in_place_changes_its_argument(name: str) -> None:
    activation, formula = ACTIVATIONS[name]
    options = wsb.Options(spectrum="dense", dtype="float64")
    report = wsb.analyze(wsb.from_module(InPlace(activation).double()), wsb.Batch(X, Y), options)
    written_out = InPlace(lambda h, inplace: h.copy_(formula(h.clone()))).double()
    expected = float(torch.linalg.eigvalsh(eager_hessian(written_out, X, Y))[-1])
    assert report.largest_eigenvalue == pytest.approx(expected, rel=1e-10)
    assert report.enclosure is not None
    assert report.enclosure.rounding.slack <= 1e-9 * expected


class Words(nn.Module):
    """The mean of a text's embeddings."""

    def __init__(self, embed: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.table, self.out, self.embed = nn.Parameter(torch.randn(10, 4)), nn.Linear(4, 3), embed

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.out(self.embed(x, self.table).mean(1))
        return z


class Between(nn.Module):
    """Two layers, and a function of the first and its input between them."""

    def __init__(self, between: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.out, self.between = nn.Linear(4, 5), nn.Linear(5, 3), between

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.out(self.between(self.inner, x))
        return z


def _tanh(layer: nn.Module, x: Tensor) -> Tensor:
    return torch.tanh(layer(x))


def _slope(layer: nn.Module, x: Tensor) -> Tensor:
    slope: Tensor = torch.func.jvp(partial(_tanh, layer), (x,), (x,))[1]
    return slope


def _slope_by_hand(layer: Any, x: Tensor) -> Tensor:
    return (1 - _tanh(layer, x) ** 2) * (x @ layer.weight.T)


def _recomputed(layer: nn.Module, x: Tensor, *, reentrant: bool) -> Tensor:
    result: Tensor = torch.utils.checkpoint.checkpoint(_tanh, layer, x, use_reentrant=reentrant)
    return result


TWINS: dict[str, tuple[nn.Module, nn.Module]] = {
    "sparse gradients": (Words(lambda x, w: F.embedding(x, w, sparse=True)), Words(F.embedding)),
    "rows by frequency": (Words(lambda x, w: F.embedding(x, w, None, None, 2.0, True)), Words(F.embedding)),
    "both, of torch": (Words(lambda x, w: torch.embedding(w, x, -1, True, True)), Words(F.embedding)),
    "by keyword": (Words(lambda x, w: torch.embedding(weight=w, indices=x, sparse=True)), Words(F.embedding)),
    "rows of a limited norm": (
        Words(lambda x, w: F.embedding(x, w, None, 1.5)),
        Words(lambda x, w: F.embedding(x, w * (1.5 / (w.norm(dim=1, keepdim=True) + 1e-7)).clamp(max=1))),
    ),
    "a derivative": (Between(_slope), Between(_slope_by_hand)),
    "a sparse matrix": (
        Between(lambda layer, x: torch.sparse.mm(torch.eye(len(x), dtype=x.dtype).to_sparse(), _tanh(layer, x))),
        Between(_tanh),
    ),
    "recomputed": (Between(partial(_recomputed, reentrant=True)), Between(_tanh)),
}


@pytest.mark.filterwarnings(
    "ignore:None of the inputs have requires_grad:UserWarning", "ignore:There is a performance drop:UserWarning"
)
@pytest.mark.parametrize("name", TWINS)
def test_what_torch_derives_in_another_way_has_the_same_hessian(name: str) -> None:
    module, twin = (each.double() for each in TWINS[name])
    twin.load_state_dict(module.state_dict())
    rng = np.random.default_rng(0)
    x = rng.integers(0, 10, (6, 3)) if isinstance(module, Words) else rng.normal(size=(6, 4))
    options, batch = wsb.Options(spectrum="dense", device="cpu", dtype="float64"), wsb.Batch(x, np.arange(6) % 3)
    got, want = (wsb.analyze(wsb.from_module(each), batch, options) for each in (module, twin))
    assert got.spectrum is not None
    assert want.spectrum is not None
    np.testing.assert_allclose(got.spectrum.eigenvalues, want.spectrum.eigenvalues, rtol=0, atol=1e-10)
    assert [check.name for check in got.checks if not check.passed] == []


def test_what_is_computed_anew_under_hooks_is_refused() -> None:
    module = Between(partial(_recomputed, reentrant=False)).double()
    with pytest.raises(wsb.ModelError, match="checkpoint") as caught:
        wsb.analyze(wsb.from_module(module), wsb.Batch(np.ones((4, 4)), np.arange(4) % 3))
    assert caught.value.code == "not_differentiable"
