"""A report holds as it is, and no change of a number in it passes."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from support.forms import crossed, full
from support.golden import Golden

import wsb_engine as wsb
from wsb_engine.verification.findings import NO_CLAIM, UNCHECKED, Ledger
from wsb_engine.verification.replay import repeat
from wsb_engine.verification.verify import check_report, compare

STORED = sorted((Path(__file__).parents[1] / "reports").glob("*.json"))
KINDS: dict[str, dict[str, Any]] = {
    "closed form": {"relative_gap": 1e-10},
    "three vectors": {"basis": "three_vectors", "moments": "none"},
    "probes in float32": {"moments": "probes", "dtype": "float32", "failure_probability": 1e-3},
    "dense": {"spectrum": "dense", "density": True},
    "top": {"spectrum": "top", "top": 3, "moments": "basis"},
    "questions": {"layers": "certified", "scaling": "tensor", "optimizer": {"kind": "sgd", "learning_rate": 0.1}},
}
ROWS = 1e-2
"""Relative change of what is a root, or at early steps mostly its distance from θ_1, which is searched to 1e-3."""
CHANGE = 1e-3
EXTREMES = ("lambda_max", "lambda_min")
Place = tuple[str | int, ...]


@dataclass(frozen=True)
class Case:
    """A report, as JSON, and its repetition."""

    document: dict[str, Any]
    again: wsb.Report
    unchecked: frozenset[str]
    """Paths that the report alone does not decide."""

    @property
    def report(self) -> wsb.Report:
        return wsb.Report.model_validate(self.document)


Cases = Callable[[str], Case]


def given() -> tuple[wsb.Classifier, wsb.Batch]:
    case = Golden("paper_three_layer_tanh")
    return wsb.load_model(case.onnx()), wsb.load_batch(case.npz())


def made(kind: str) -> Case:
    classifier, batch = given()
    report = wsb.analyze(classifier, batch, wsb.Options(**KINDS[kind]))
    again = repeat(report, classifier, batch)
    unchecked = frozenset(finding.path for finding in alone(report).findings if finding.outcome == "not_checked")
    return Case(json.loads(report.model_dump_json()), again, unchecked)


@pytest.fixture(scope="module")
def case() -> Callable[[str], Case]:
    """Each report is made and repeated once."""
    return cache(made)


def alone(report: wsb.Report) -> Ledger:
    ledger = Ledger()
    check_report(report, ledger)
    ledger.complete(report, UNCHECKED)
    return ledger


def wrong(ledger: Ledger) -> list[str]:
    return [f"{each.path}: {each.how}" for each in ledger.findings if each.outcome == "wrong"]


def numbers(value: Any, place: Place = ()) -> Iterator[Place]:
    """Yield the places of all numbers that a report claims."""
    if isinstance(value, dict | list):
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield from numbers(each, (*place, key))
    elif isinstance(value, int | float) and not isinstance(value, bool) and not path_of(place).startswith(NO_CLAIM):
        yield place


def path_of(place: Place) -> str:
    return ".".join(map(str, place))


def changed(document: dict[str, Any], place: Place, share: float) -> wsb.Report:
    """Return the report with one number changed: by this share of it, or if it counts something by one."""
    whole: Any = copy.deepcopy(document)
    part = whole
    for key in place[:-1]:
        part = part[key]
    value = part[place[-1]]
    if isinstance(value, int):
        part[place[-1]] = value + 1
    else:
        part[place[-1]] = value * (1 + share) if value else abs(share)
    return wsb.Report.model_validate(whole)


def share_of(place: Place) -> float:
    return ROWS if place[:2] in (("enclosure", "convergence"), ("enclosure", "floor")) else CHANGE


def test_certified_layers_need_no_moments() -> None:
    report = wsb.analyze(*given(), wsb.Options(layers="certified", moments="none"))
    assert report.moments is None
    assert all(layer.lambda_max is not None for layer in report.layers)
    assert wrong(alone(report)) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_report_holds_as_it_is(case: Cases, kind: str) -> None:
    found = case(kind)
    assert wrong(alone(found.report)) == []
    ledger = Ledger()
    assert compare(found.report, found.again, ledger)
    assert wrong(ledger) == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("sign", "most"), [(-1, 10), full(-1, 40), full(1, 40)])
def test_no_number_that_counts_as_checked_can_be_changed(case: Cases, kind: str, sign: int, most: int) -> None:
    found = case(kind)
    places = [
        place
        for place in numbers(found.document)
        if not any(path_of(place[:length]) in found.unchecked for length in range(1, len(place) + 1))
    ]
    assert len(places) > 100
    tried = places[:: max(1, len(places) // most)]
    passed = [
        path_of(place) for place in tried if not wrong(alone(changed(found.document, place, sign * share_of(place))))
    ]
    assert passed == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("sign", "most"), [(1, 20), full(-1, sys.maxsize)])
def test_no_number_at_all_can_be_changed_once_the_analysis_is_repeated(
    case: Cases, kind: str, sign: int, most: int
) -> None:
    found, passed = case(kind), []
    places = list(numbers(found.document))
    assert len(places) > 200
    for place in places[:: max(1, len(places) // most)]:
        ledger = Ledger()
        compare(changed(found.document, place, sign * CHANGE), found.again, ledger)
        if not wrong(ledger):
            passed.append(path_of(place))
    assert passed == []


@pytest.mark.parametrize(
    ("kind", "place"), crossed(KINDS, [("enclosure", end, side) for end in EXTREMES for side in ("upper", "lower")])
)
def test_an_end_can_be_moved_by_no_more_than_its_slack(case: Cases, kind: str, place: Place) -> None:
    found = case(kind)
    slack = found.document["enclosure"]["rounding_slack"]
    value = found.document["enclosure"][place[1]][place[2]]
    for sign in (1, -1):
        assert wrong(alone(changed(found.document, place, sign * max(slack, 1e-13) / value))), sign


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("model", "sha256"), "0" * 64),
        (("batch", "sha256"), "0" * 64),
        (("model", "parameters", "tensors", 0, "name"), "other"),
        (("model", "parameters", "tensors", 0, "shape", 0), 7),
        (("model", "activations"), ["sigmoid"]),
        (("engine", "seed"), 1),
        (("loss", "kind"), "squared_error"),
        (("enclosure", "lambda_max", "kind"), "probabilistic"),
        (("enclosure", "rounding", "how"), "measured"),
        (("enclosure", "stopped_by"), "time"),
        (("enclosure", "basis"), "three_vectors"),
        (("moments", "method"), "basis"),
        (("moments", "exact"), False),
        (("checks", 0, "passed"), False),
        (("citations", 0, "url"), "https://example.org"),
        (("bounds_list", 0, "name"), "frobenius_norm"),
        (("schema_version",), "1.9"),
        (("schema_version",), "1.5"),
    ],
)
def test_a_changed_word_is_found(case: Cases, place: Place, value: Any) -> None:
    found = case("closed form")
    whole: Any = copy.deepcopy(found.document)
    part = whole
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    forged = wsb.Report.model_validate(whole)
    ledger = Ledger()
    check_report(forged, ledger)
    compare(forged, found.again, ledger)
    assert wrong(ledger)


def test_a_part_that_was_taken_out_is_missed(case: Cases) -> None:
    found = case("closed form")
    for name in ("parity", "trace_within_frobenius", "enclosure_meets_bound"):
        fewer = copy.deepcopy(found.document)
        fewer["checks"] = [check for check in fewer["checks"] if check["name"] != name]
        assert len(fewer["checks"]) < len(found.document["checks"])
        assert any(path.startswith(f"checks.{name}") for path in wrong(alone(wsb.Report.model_validate(fewer))))
    assert wrong(alone(wsb.Report.model_validate({**found.document, "citations": None})))


def test_what_only_model_and_batch_tell_is_never_counted_as_checked(case: Cases) -> None:
    result = wsb.verify(case("closed form").report)
    assert result.passed
    assert not result.repeated
    unchecked = {finding.path for finding in result.not_checked}
    for path in ("loss.value", "loss.gradient_norm", "moments.trace", "enclosure.alpha", "batch.samples"):
        assert path in unchecked
    assert {finding.how for finding in result.not_checked} == {UNCHECKED}


def test_with_model_and_batch_everything_is_repeated_and_differentiated_independently(case: Cases) -> None:
    report = case("closed form").report
    result = wsb.verify(report, *given())
    assert (result.passed, result.repeated, result.exact) == (True, True, True)
    assert result.not_checked == []
    by_itself = {finding.path for finding in result.held if "double backward" in finding.how}
    assert {
        "loss.value",
        "loss.gradient_norm",
        "moments.trace.independent",
        "enclosure.lambda_max.independent",
    } <= by_itself


def test_another_batch_is_noticed(case: Cases) -> None:
    classifier, batch = given()
    other = wsb.Batch(batch.x, batch.y[::-1].copy())
    result = wsb.verify(case("closed form").report, classifier, other)
    assert not result.passed
    assert "loss.value" in {finding.path for finding in result.wrong}


def test_on_another_machine_numbers_agree_up_to_rounding(case: Cases) -> None:
    classifier, batch = given()
    found = copy.deepcopy(case("closed form").document)
    found["evidence"]["machine"]["processor"] = "another"
    report = wsb.Report.model_validate(found)
    result = wsb.verify(report, classifier, batch)
    assert (result.passed, result.exact) == (True, False)
    found["moments"]["trace"] *= 1 + 1e-6
    found["enclosure"]["alpha"][2] *= 1 + 1e-4
    ledger = Ledger()
    compare(wsb.Report.model_validate(found), case("closed form").again, ledger)
    assert {path.partition(":")[0] for path in wrong(ledger)} == {"moments.trace", "enclosure.alpha.2"}


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_what_an_older_report_lacks_is_said_and_not_failed(path: Path) -> None:
    stored = json.loads(path.read_text())
    stored["spectrum"]["density"] = None  # thinned, so that it does not integrate to 1
    result = wsb.verify(wsb.Report.model_validate(stored))
    assert result.wrong == []
    assert {"evidence", "citations", "bounds_list"} <= {finding.path for finding in result.not_checked}


def test_a_model_without_its_batch_is_refused(case: Cases) -> None:
    classifier, _ = given()
    with pytest.raises(wsb.OptionsError) as caught:
        wsb.verify(case("closed form").report, classifier)  # type: ignore[call-overload]
    assert caught.value.code == "batch_missing"


def test_squares_at_the_end_of_the_range_of_floats_are_not_called_wrong() -> None:
    x = torch.tensor([[1.0, 2.0], [0.5, -1.0]], dtype=torch.float64)
    module = torch.nn.Linear(2, 2, dtype=torch.float64)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[200.0, 0.0], [-200.0, 0.0]]))
        module.bias.zero_()
    report = wsb.analyze(wsb.from_module(module), wsb.Batch(x, [0, 0]), wsb.Options(moments="basis"))
    assert report.moments is not None
    small = report.model_copy(
        update={"moments": report.moments.model_copy(update={"trace": 1e-180, "frobenius_squared": 0.0})}
    )
    assert "moments" not in {path.partition(".")[0] for path in wrong(alone(small))}
