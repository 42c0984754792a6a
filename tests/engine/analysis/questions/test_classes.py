"""Certified λ_max of each class, against the Hessian of its samples' mean loss by double backward."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.curvature import Known, general, largest, mlp
from support.forms import crossed
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import wsb_engine as wsb


def hessian_of(known: Known, rows: Tensor, y: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the Hessian of torch's mean loss over some samples."""
    named = {name: each.detach() for name, each in known.module.named_parameters()}
    theta = torch.cat([each.reshape(-1) for each in named.values()])
    x = known.batch.x["x"][rows]

    def loss(flat: Tensor) -> Tensor:
        pieces = flat.split([each.numel() for each in named.values()])
        values = {name: piece.view_as(named[name]) for name, piece in zip(named, pieces, strict=True)}
        z = torch.func.functional_call(known.module, values, (x,))
        return cross_entropy(z, y[rows], weight=weight)

    found: Tensor = torch.autograd.functional.hessian(loss, theta)  # type: ignore[no-untyped-call]
    return found


ALONE = {"classes": "certified", "moments": "none", "enclosure": False}
"""An analysis of nothing else."""


@pytest.mark.parametrize(("network", "class_weights"), crossed([mlp, general], [None, (0.5, 1.0, 3.0)]))
def test_each_interval_encloses_and_the_weighted_classes_add_up_to_the_whole(
    network: object, class_weights: tuple[float, ...] | None
) -> None:
    known = mlp() if network is mlp else general()
    report = known.analyze(**ALONE, class_weights=class_weights)
    assert report.classes is not None
    y = torch.from_numpy(known.batch.y)
    v = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float64)
    total = torch.zeros_like(known.hessian)
    for each in report.classes:
        rows = torch.nonzero(y == each.index).squeeze(1)
        H = hessian_of(known, rows, y, v)
        total += each.weight * H
        assert each.labels == len(rows)
        assert each.lambda_max is not None
        value = largest(H)
        assert each.lambda_max.lower - 1e-13 <= value <= each.lambda_max.upper + 1e-13
        assert each.lambda_max.upper - each.lambda_max.lower <= 1e-5 * abs(value)
    assert sum(each.weight for each in report.classes) == pytest.approx(1, abs=1e-14)
    torch.testing.assert_close(total, hessian_of(known, torch.arange(len(y)), y, v), rtol=0, atol=1e-14)


def test_positions_of_other_classes_do_not_count() -> None:
    torch.manual_seed(0)
    head = nn.Linear(3, 3).double()
    x, y = torch.randn(4, 5, 3, dtype=torch.float64), torch.randint(3, (4, 5))
    y[0, :2] = -100
    report = wsb.analyze(wsb.from_module(head), wsb.Batch(x, y), wsb.Options(**ALONE))
    flat_x, flat_y = x.flatten(0, 1), y.flatten()
    for each in report.classes or []:
        chosen = flat_x[flat_y == each.index]

        def loss(theta: Tensor, chosen: Tensor = chosen, index: int = each.index) -> Tensor:
            z = chosen @ theta[:9].view(3, 3).T + theta[9:]
            return cross_entropy(z, torch.full((len(z),), index))

        theta = torch.cat([each.detach().reshape(-1) for each in head.parameters()])
        value = largest(torch.autograd.functional.hessian(loss, theta))  # type: ignore[no-untyped-call]
        assert each.labels == len(chosen)
        assert each.lambda_max is not None
        assert each.lambda_max.lower - 1e-13 <= value <= each.lambda_max.upper + 1e-13


def test_a_binary_logit_has_two_classes() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(6, 3, dtype=torch.float64), np.array([0, 1, 1, 0, 1, 1])
    options = wsb.Options(classes="certified")
    report = wsb.analyze(wsb.from_module(nn.Linear(3, 1).double()), wsb.Batch(x, y), options)
    assert [(each.index, each.labels, each.weight) for each in report.classes or []] == [
        (0, 2, pytest.approx(1 / 3)),
        (1, 4, pytest.approx(2 / 3)),
    ]


def test_a_class_without_weight_is_left_out() -> None:
    known = mlp()
    report = known.analyze(classes="certified", class_weights=(1.0, 0.0, 1.0))
    assert [each.index for each in report.classes or []] == [0, 2]


@pytest.mark.parametrize("loss", ["auto", "squared_error", "multilabel"])
def test_labels_that_are_no_classes_are_refused(loss: str) -> None:
    batch = wsb.Batch(mlp().batch.x["x"], np.full((9, 3), 1 / 3))
    with pytest.raises(wsb.OptionsError) as error:
        wsb.analyze(wsb.from_module(mlp().module), batch, wsb.Options(classes="certified", loss=loss))
    assert error.value.code == "classes_unknown"


class Centred(nn.Linear):
    """Its logits depend on the mean of all samples."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(super().forward(x - x.mean(0)))


@pytest.mark.slow
def test_samples_that_depend_on_each_other_stay_together() -> None:
    torch.manual_seed(0)
    module = Centred(3, 3).double()
    x, y = torch.randn(7, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2, 2])
    report = wsb.analyze(wsb.from_module(module), wsb.Batch(x, y), wsb.Options(**ALONE, relative_gap=1e-3))
    theta = torch.cat([each.detach().reshape(-1) for each in module.parameters()])
    assert len(report.classes or []) == 3
    for each in report.classes or []:
        rows = y == each.index

        def loss(flat: Tensor, rows: Tensor = rows) -> Tensor:
            z = torch.tanh((x - x.mean(0)) @ flat[:9].view(3, 3).T + flat[9:])
            return cross_entropy(z[rows], y[rows])

        value = largest(torch.autograd.functional.hessian(loss, theta))  # type: ignore[no-untyped-call]
        assert each.lambda_max is not None
        assert each.lambda_max.lower - 1e-13 <= value <= each.lambda_max.upper + 1e-13


def test_samples_too_many_to_copy_are_weighed_with_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    copied = mlp().analyze(**ALONE).classes
    monkeypatch.setattr("wsb_engine.analysis.questions.classes.COPIED_SHARE", 0.0)
    for one, other in zip(copied or [], mlp().analyze(**ALONE).classes or [], strict=True):
        assert one.lambda_max is not None
        assert other.lambda_max is not None
        assert other.lambda_max.lower == pytest.approx(one.lambda_max.lower, rel=1e-6)


def test_ignored_labels_count_for_no_class() -> None:
    y = mlp().batch.y.copy()
    y[0] = -1
    batch, options = wsb.Batch(mlp().batch.x["x"], y), wsb.Options(classes="certified", ignore_index=-1)
    report = wsb.analyze(wsb.from_module(mlp().module), batch, options)
    assert sum(each.labels for each in report.classes or []) == len(y) - 1
