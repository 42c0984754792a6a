"""The bound as a penalty: its value, its gradient against finite differences, what it refuses."""

from __future__ import annotations

import pytest
import torch
from support.forms import thinned
from support.golden import NAMES, Golden
from torch import Tensor, nn

import wsb_engine as wsb


def penalty(case: Golden, module: nn.Module) -> Tensor:
    return wsb.wolkowicz_styan_penalty(module, torch.from_numpy(case.x), torch.from_numpy(case.y))


@pytest.mark.parametrize("name", NAMES)
def test_it_is_the_upper_bound(name: str) -> None:
    case = Golden(name)
    want = case.expected["wolkowicz_styan"]["lambda_max"]["upper"]
    assert float(penalty(case, case.module()).detach()) == pytest.approx(want, rel=1e-9)


@pytest.mark.parametrize("name", thinned(NAMES, 5))
def test_its_gradient_equals_finite_differences(name: str) -> None:
    case, module = Golden(name), Golden(name).module()
    penalty(case, module).backward()
    gradient = torch.cat([p.grad.reshape(-1) for p in module.parameters() if p.grad is not None])
    direction = torch.randn(len(gradient), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    step = 1e-5

    def moved(sign: float) -> float:
        other = case.module()
        flat = nn.utils.parameters_to_vector(other.parameters()).detach() + sign * step * direction
        nn.utils.vector_to_parameters(flat, other.parameters())
        return float(penalty(case, other).detach())

    # Five points: the error is of fourth order in the step.
    numeric = (8 * (moved(1) - moved(-1)) - (moved(2) - moved(-2))) / (12 * step)
    assert float(gradient @ direction) == pytest.approx(numeric, rel=1e-6, abs=1e-8)


def test_a_wide_last_hidden_layer_has_a_gradient_too() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 300), nn.Tanh(), nn.Linear(300, 2)).double()
    x, y = torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 1, 0, 1])
    wsb.wolkowicz_styan_penalty(module, x, y).backward()
    report = wsb.analyze(wsb.from_module(module), wsb.Batch(x, y), wsb.Options(enclosure=False))
    assert report.bounds is not None
    want = report.bounds.wolkowicz_styan.lambda_max.upper
    assert float(wsb.wolkowicz_styan_penalty(module, x, y).detach()) == pytest.approx(want, rel=1e-9)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in module.parameters())


def test_what_is_no_smooth_mlp_is_refused() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(wsb.ModelError) as caught:
        wsb.wolkowicz_styan_penalty(module, torch.randn(2, 3), torch.tensor([0, 1]))
    assert caught.value.code == "closed_form_unavailable"


@pytest.mark.parametrize(
    ("y", "code"),
    [
        (torch.tensor([0, 1, 0]), "row_count_mismatch"),
        (torch.tensor([0, 2]), "label_classes_mismatch"),
        (torch.rand(2, 3), "label_classes_mismatch"),
        (torch.rand(2, 2, 1), "label_classes_mismatch"),
        (torch.zeros(2, 1, 1, dtype=torch.int64), "label_classes_mismatch"),
    ],
)
def test_labels_that_do_not_fit_are_refused(y: Tensor, code: str) -> None:
    with pytest.raises(wsb.BatchError) as caught:
        wsb.wolkowicz_styan_penalty(nn.Linear(3, 2), torch.randn(2, 3), y)
    assert caught.value.code == code


def test_several_sigmoids_are_refused() -> None:
    module = nn.Sequential(nn.Linear(4, 3), nn.Sigmoid())
    with pytest.raises(wsb.ModelError) as caught:
        wsb.wolkowicz_styan_penalty(module, torch.eye(4), torch.tensor([0, 1, 2, 1]))
    assert caught.value.code == "multilabel_unsupported"
