"""The page of training runs along their checkpoints."""

from __future__ import annotations

import re
from collections.abc import Callable
from html import unescape

import pytest
from support.pages import Visitor, analysed, field_errors, table_rows
from support.service import Service, StartService

from wsb_engine.report import Check, Density, SpectrumResult

Visit = Callable[..., Visitor]

FAILED = [Check(name="parity", passed=False, value=0.5, tolerance=1e-3)]


def ticked(text: str, name: str) -> list[str]:
    """Values of the boxes with this name that are ticked."""
    return [unescape(each) for each in re.findall(rf'name="{name}" value="([^"]*)" checked', text)]


@pytest.mark.slow
def test_runs_are_listed_with_their_checkpoints_to_tick(service: Service, visit: Visit) -> None:
    visitor = visit(service)
    assert "No analysis with the label <code>run</code>" in visitor.get("/series").text
    for run, epoch in (("old", 1), ("new", 1), ("new", 2)):
        analysed(service, visitor, f"run: {run}\nepoch: {epoch}")
    analysed(service, visitor, "branch: main")
    text = visitor.get("/series").text
    offered = re.findall(r'name="label" value="([^"]+)"><label[^>]*>(.*?)</label>', text)
    plain = [(value, re.sub("<[^>]+>", "", label)) for value, label in offered]
    assert plain == [("run:new", "new 2 checkpoints"), ("run:old", "old 1 checkpoint")]
    assert ticked(text, "label") == []
    assert "<svg" not in text


@pytest.mark.slow
def test_a_series_is_in_the_order_of_its_checkpoints(service: Service, visit: Visit) -> None:
    visitor = visit(service)
    for epoch in (10, 2, 1):
        labels = f"run: digits\nepoch: {epoch}"
        analysed(service, visitor, labels, rate="0.05", lambda_max=(epoch + 40.0, epoch + 40.5))
    analysed(service, visitor, "run: digits\nepoch: last", rate="0.05", lambda_max=None)
    analysed(service, visitor, "run: digits\nepoch: 11", rate="0.05", lambda_max=None, bounds=None)
    analysed(service, visitor, "run: other\nepoch: 3")
    text = visitor.get("/series", params={"label": "run:digits"}).text
    found = table_rows(text)
    assert list(found) == ["1", "2", "10", "11", "last"]
    assert found["2"][:4] == ["42 to 42.5", "enclosure, deterministic", "0.5", "75 %"]
    assert found["last"][1] == "Wolkowicz-Styan bounds"
    assert found["11"][:3] == ["—", "—", "0.5"]
    assert "λ_max along digits" in text
    assert "η the learning rate: 40." in text
    assert "they have no number as epoch or step: 1 checkpoint." in text


@pytest.mark.slow
def test_runs_and_quantities_of_the_address_are_shown_and_ticked(service: Service, visit: Visit) -> None:
    visitor = visit(service)
    density = Density(
        grid=[0.0, 1.0], values=[1.0, 0.5], sigma=0.1, mean=0.5, mean_error=0.0, second_moment=1.0,
        second_moment_error=0.0,
    )  # fmt: skip
    spectrum = SpectrumResult(
        method="dense", eigenvalues=[3.0, -1.0], residuals=None, upper_bounds=None, density=density
    )
    for run in ("a", "b"):
        analysed(service, visitor, f"run: {run}\nepoch: 1", spectrum=spectrum)
    asked = {
        "label": ["run:a", "run:b"],
        "quantity": ["loss", "lambda_max", "eigenvalues", "spectrum", "density"],
        "log": "y",
        "x": "order",
        "top": "2",
    }
    text = visitor.get("/series", params=asked).text
    assert ticked(text, "label") == ["run:b", "run:a"]
    assert ticked(text, "quantity") == ["lambda_max", "loss", "eigenvalues", "spectrum", "density"]
    assert ticked(text, "log") == ["y"]
    assert '<option value="order" selected>' in text
    assert len(re.findall('<svg class="plot"', text)) == 3 + 2 * 2
    assert len(set(re.findall(r'<title id="([^"]+)"', text))) == 7
    assert text.count("no place below 2.9: 1 eigenvalue.") == 2
    for file in {unescape(each) for each in re.findall(r'(?:href|data-png)="(/v1/series/[^"]+)"', text)}:
        response = visitor.get(file)
        assert response.status_code == 200, file
        kind = "text/csv; charset=utf-8; header=present" if ".csv?" in file else "image/svg+xml"
        assert response.headers["content-type"] == kind


def test_labels_of_strangers_lead_to_their_files(service: Service, visit: Visit) -> None:
    visitor = visit(service)
    name = "=a/../b?c#d&e%2F '\"<x>.csv"
    analysed(service, visitor, f"run: {name}\nepoch: 1")
    text = visitor.get("/series", params={"label": f"run:{name}"}).text
    assert "<x>" not in text
    [table] = [unescape(each) for each in re.findall(r'href="(/v1/series/[^"]+)" download="series.csv"', text)]
    [plot] = [unescape(each) for each in re.findall(r'data-png="(/v1/series/[^"]+)"', text)]
    assert "'=a/../b?c#d&e%2F '" in visitor.get(table).text
    assert visitor.get(plot).status_code == 200


@pytest.mark.slow
def test_checkpoints_with_failed_checks_are_named_first(service: Service, visit: Visit) -> None:
    visitor = visit(service)
    analysed(service, visitor, "run: doubtful\nepoch: 1", checks=FAILED)
    analysed(service, visitor, "run: doubtful\nepoch: 2")
    text = visitor.get("/series", params={"label": "run:doubtful"}).text
    assert text.index("The numbers of 1 of 2 checkpoints can't be relied on") < text.index("<svg")
    found = table_rows(text)
    assert found["1"][1].endswith("Not reliable")
    assert "Not reliable" not in found["2"][1]


@pytest.mark.slow
def test_only_the_newest_are_shown_and_it_is_said(start_service: StartService, visit: Visit) -> None:
    service = start_service(max_series_points=1, max_series_listed=1)
    visitor = visit(service)
    for run, epoch in (("a", 1), ("b", 1), ("b", 2)):
        analysed(service, visitor, f"run: {run}\nepoch: {epoch}")
    text = visitor.get("/series", params={"label": "run:a"}).text
    assert "Only the newest 1 are listed" in text
    assert ticked(text, "label") == ["run:a"]  # chosen, though it is not among them
    text = visitor.get("/series", params={"label": "run:b"}).text
    assert "Only the newest 1 are shown." in text
    assert list(table_rows(text)) == ["2"]


@pytest.mark.parametrize("label", ["a b", "run:\x00", "x" * 65])
def test_what_is_no_label_is_told_at_the_field(api: Service, visit: Visit, label: str) -> None:
    response = visit(api).get("/series", params={"label": label})
    assert (response.status_code, field_errors(response.text)["label"]) == (422, "A label is a name, or name:value.")


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("quantity", "sharpness", "There is no quantity 'sharpness'."),
        ("top", "0", "The number of eigenvalues is from 1 to 20."),
        ("top", "٣", "The number of eigenvalues is from 1 to 20."),
        ("top", "9" * 5000, "The number of eigenvalues is from 1 to 20."),
        ("label", [f"run:{i}" for i in range(9)], "At most 8 runs can be shown together; 9 are ticked."),
    ],
)
def test_what_makes_no_sense_is_told_at_its_field(
    api: Service, visit: Visit, field: str, value: str | list[str], told: str
) -> None:
    response = visit(api).get("/series", params={field: value})
    assert (response.status_code, field_errors(response.text)[field]) == (422, told)


def test_a_series_of_nothing_says_so(api: Service, visit: Visit) -> None:
    response = visit(api).get("/series", params={"label": ["run:none", ""]})
    assert response.status_code == 200
    assert "No analysis with this label has a report that can be read: run:none." in response.text
    assert ticked(response.text, "label") == ["run:none"]
