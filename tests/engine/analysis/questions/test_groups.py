"""Certified λ_max of layers and groups of parameters, against blocks of a dense Hessian by double backward."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support.curvature import Known, general, largest, mlp
from support.forms import crossed, full

import wsb_engine as wsb

LAYERS: dict[Callable[[], Known], list[list[str]]] = {
    mlp: [["0.weight", "0.bias"], ["2.weight", "2.bias"], ["4.weight", "4.bias"]],
    general: [
        ["body.first.weight", "body.first.bias"],
        ["body.norm.weight", "body.norm.bias"],
        ["head.weight", "head.bias"],
    ],
}
ROUNDING = 1e-13
"""Of the oracle."""


def encloses(found: wsb.report.CertifiedInterval | None, value: float, gap: float = 1e-5) -> bool:
    return (
        found is not None
        and found.lower - ROUNDING <= value <= found.upper + ROUNDING
        and (found.upper - found.lower <= gap * abs(value))
    )


@pytest.mark.parametrize(("network", "basis"), crossed(LAYERS, ["full", "three_vectors"]))
def test_the_interval_of_each_layer_encloses_the_largest_eigenvalue_of_its_block(
    network: Callable[[], Known], basis: str
) -> None:
    known = network()
    report = known.analyze(layers="certified", basis=basis)
    assert report.layers is not None
    assert len(report.layers) == len(LAYERS[network])
    for layer, names in zip(report.layers, LAYERS[network], strict=True):
        assert encloses(layer.lambda_max, largest(known.block(*names)))
        assert layer.parameters == len(known.block(*names))
        assert (layer.trace is None) == (network is general)


def test_layers_of_a_general_model_are_named_after_their_modules() -> None:
    report = general().analyze(layers="certified", enclosure=False, moments="none", relative_gap=1e-2)
    assert [layer.name for layer in report.layers or []] == ["body.first", "body.norm", "head"]


def test_the_closed_form_makes_intervals_of_layers_certain() -> None:
    report = mlp().analyze(layers="certified")
    kinds = [layer.lambda_max.kind for layer in report.layers or [] if layer.lambda_max is not None]
    assert kinds == ["deterministic"] * 3


def test_a_group_is_the_block_of_all_parameters_that_its_glob_matches() -> None:
    known = general()
    report = known.analyze(groups=("*.bias", "head.*"), enclosure=False, moments="none")
    assert report.groups is not None
    biases, head = report.groups
    names = [name for name in known.places if name.endswith("bias")]
    assert (biases.name, biases.tensors, biases.parameters) == ("*.bias", 3, len(known.block(*names)))
    assert encloses(biases.lambda_max, largest(known.block(*names)))
    assert encloses(head.lambda_max, largest(known.block("head.weight", "head.bias")))


def test_float32_widens_the_interval_of_a_layer_and_keeps_it_right() -> None:
    known = mlp()
    report = known.analyze(layers="certified", dtype="float32")
    for layer, names in zip(report.layers or [], LAYERS[mlp], strict=True):
        assert encloses(layer.lambda_max, largest(known.block(*names)), gap=1e-2)


def test_a_group_that_matches_nothing_is_refused() -> None:
    with pytest.raises(wsb.OptionsError, match="no parameter matches 'tail") as error:
        mlp().analyze(groups=("tail.*",))
    assert error.value.code == "parameter_pattern_unmatched"


def test_a_layer_without_selected_parameters_has_no_interval() -> None:
    report = mlp().analyze(layers="certified", parameters=("!0.*",))
    assert [layer.lambda_max is None for layer in report.layers or []] == [True, False, False]


def test_nothing_of_it_is_computed_unless_asked_for() -> None:
    report = general().analyze()
    assert report.layers is None
    assert (report.groups, report.gauss_newton, report.alignment) == (None, None, None)
    assert not {"layers", "groups", "gauss_newton", "alignment"} & report.timings.keys()


@pytest.mark.parametrize("network", [mlp, full(general)])
def test_the_same_input_gives_the_same_intervals(network: Callable[[], Known]) -> None:
    options = {"layers": "certified", "groups": ("*",), "enclosure": False, "moments": "none", "relative_gap": 1e-3}
    first, second = (network().analyze(**options) for _ in range(2))
    assert first.layers == second.layers
    assert first.groups == second.groups


def test_several_devices_share_the_products_of_blocks() -> None:
    known = general()
    report = known.analyze(layers="certified", devices=("cpu", "cpu"), enclosure=False, moments="none")
    for layer, names in zip(report.layers or [], LAYERS[general], strict=True):
        assert encloses(layer.lambda_max, largest(known.block(*names)))
