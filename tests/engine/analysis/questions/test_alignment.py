"""The gradient beside the eigenvectors of a dense Hessian by double backward."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from support.curvature import Known, general, mlp

import wsb_engine as wsb
from wsb_engine.report import Alignment

NETWORKS = pytest.mark.parametrize("network", [mlp, general], ids=lambda network: network.__name__)


def part(known: Known, **options: object) -> Alignment:
    found = known.analyze(alignment=True, moments="none", **options).alignment
    assert found is not None
    return found


Aligned = Callable[[Callable[[], Known]], Alignment]


@pytest.fixture(scope="module")
def aligned() -> Aligned:
    """What is said of each network with its three largest eigenvalues, once."""
    return cache(lambda network: part(network(), top=3))


@NETWORKS
def test_cosines_are_as_close_to_those_of_the_eigenvectors_as_they_say(
    aligned: Aligned, network: Callable[[], Known]
) -> None:
    known, found = network(), aligned(network)
    values, vectors = torch.linalg.eigh(known.hessian)
    want = (vectors.flip(1).T @ known.gradient).abs() / known.gradient.norm()
    assert len(found.eigenvectors) == 3
    for i, each in enumerate(found.eigenvectors):
        assert each.eigenvalue == pytest.approx(float(values[-1 - i]), abs=1e-9)
        assert each.cosine is not None
        assert each.cosine_error is not None
        assert each.cosine_error < 1e-5
        assert abs(each.cosine - float(want[i])) <= each.cosine_error
    assert found.subspace_cosine == pytest.approx(float(want[:3].norm()), abs=1e-6)
    assert found.failure_probability == pytest.approx(1e-6)


@NETWORKS
def test_the_curvature_along_the_gradient_is_enclosed(aligned: Aligned, network: Callable[[], Known]) -> None:
    known = network()
    interval, g = aligned(network).gradient_curvature, known.gradient
    value = float(g @ known.hessian @ g / (g @ g))
    assert interval is not None
    assert interval.lower <= value <= interval.upper
    assert interval.upper - interval.lower < 1e-9


@NETWORKS
def test_the_direction_of_negative_curvature_is_that_of_the_smallest_eigenvalue(
    aligned: Aligned, network: Callable[[], Known]
) -> None:
    known, found = network(), aligned(network).negative_curvature
    values, vectors = torch.linalg.eigh(known.hessian)
    assert found is not None
    assert float(values[0]) <= found.rayleigh_quotient.upper
    assert found.rayleigh_quotient.lower == pytest.approx(float(values[0]), rel=1e-4)
    module = {name.rpartition(".")[0] for name in known.places}
    want = {
        each: float(
            sum(vectors[index, 0].square().sum() for name, index in known.places.items() if name[: len(each)] == each)
        )
        for each in module
    }
    shares = {share.name.removesuffix(".weight"): share.share for share in found.layers}
    assert shares == pytest.approx(want, abs=1e-3)


def test_shares_of_layers_add_up_to_one(aligned: Aligned) -> None:
    for each in aligned(general).eigenvectors:
        assert sum(share.share for share in each.layers) == pytest.approx(1, abs=1e-12)


def test_a_convex_loss_has_no_direction_of_negative_curvature() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])
    options = wsb.Options(alignment=True, top=1)
    report = wsb.analyze(wsb.from_module(torch.nn.Linear(3, 3).double()), wsb.Batch(x, y), options)
    assert report.alignment is not None
    assert report.alignment.negative_curvature is None


def test_eigenvalues_that_are_too_close_have_no_certain_cosine() -> None:
    torch.manual_seed(0)
    # Twice the same inputs for two outputs that do not meet: every eigenvalue is double.
    x = torch.randn(5, 2, dtype=torch.float64)
    network = torch.nn.Linear(2, 2, bias=False).double()
    options = wsb.Options(alignment=True, top=2, loss="squared_error")
    report = wsb.analyze(wsb.from_module(network), wsb.Batch(x, torch.zeros(5, 2).numpy()), options)
    assert report.alignment is not None
    assert [each.cosine_error for each in report.alignment.eigenvectors] == [None, None]


def test_three_vectors_have_no_eigenvectors() -> None:
    with pytest.raises(wsb.OptionsError) as error:
        part(mlp(), basis="three_vectors")
    assert error.value.code == "basis_required"
