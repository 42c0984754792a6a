"""What analyses and their files are called, and the numbers that lists have of their reports."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.forms import full
from support.service import Service

from service.kit.file_names import MAX_FILE_NAME, shown_file_name

END = {"lower": 0.5, "upper": 0.75, "relative_gap": None, "kind": "deterministic", "failure_probability": None}
ENCLOSURE = {"lambda_max": END, "lambda_min": END, "hessian_vector_products": 1, "rounding_slack": 0}
FORGED = "forge:" + json.dumps({"enclosure": ENCLOSURE, "timings": {"total": 1.5}}, separators=(",", ":"))
"""A command to the worker: a report with these numbers."""


def posted(service: Service, model: bytes, batch: bytes, names: tuple[str, str] = ("m.onnx", "b.npz"), **request: Any):
    """The analysis of these files under these names."""
    parts = {"model": (names[0], model), "batch": (names[1], batch), "request": (None, json.dumps(request))}
    response = service.client.post("/v1/analyses", files=parts)
    assert response.status_code == 202, response.text
    return response.json()


def test_an_analysis_keeps_its_name_and_those_of_its_files(
    api: Service, model_bytes: bytes, batch_bytes: bytes
) -> None:
    analysis = posted(api, model_bytes, batch_bytes, ("a/b/m.onnx", "c:\\b.npz"), name="nightly")
    assert [analysis[key] for key in ("name", "model_name", "batch_name")] == ["nightly", "m.onnx", "b.npz"]
    later = {"model": analysis["model"], "batch": analysis["batch"], "model_name": "again.onnx"}
    analysis = api.client.post("/v1/analyses", json=later).json()
    assert [analysis[key] for key in ("name", "model_name", "batch_name")] == [None, "again.onnx", None]


def test_names_in_the_request_come_before_those_of_the_parts(
    api: Service, model_bytes: bytes, batch_bytes: bytes
) -> None:
    analysis = posted(api, model_bytes, batch_bytes, model_name="mine.onnx")
    assert (analysis["model_name"], analysis["batch_name"]) == ("mine.onnx", "b.npz")


def test_a_name_that_cannot_be_shown_is_refused(api: Service, model_bytes: bytes, batch_bytes: bytes) -> None:
    for field in ("name", "model_name", "batch_name"):
        for value in ("", "a\x00", "a\nb", "x" * 201):
            form = {"model": model_bytes, "batch": batch_bytes, "request": (None, json.dumps({field: value}))}
            response = api.client.post("/v1/analyses", files=form)
            assert (response.status_code, response.json()["errors"][0]["pointer"]) == (422, f"/{field}"), value


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("m.onnx", "m.onnx"),
        ("../../etc/passwd", "passwd"),
        ("C:\\models\\m.onnx", "m.onnx"),
        ("a\x00b\u202ec\x1b[31m\ufffd", "abc[31m\ufffd"),
        ("x" * 300, "x" * MAX_FILE_NAME),
        ("folder/", None),
        ("\x07", None),
        (None, None),
    ],
)
def test_a_file_name_is_shown_without_its_path_and_what_is_invisible(given: str | None, shown: str | None) -> None:
    assert shown_file_name(given) == shown


def test_the_numbers_of_a_report_are_those_of_the_analysis(
    service: Service, model_bytes: bytes, batch_bytes: bytes
) -> None:
    analysis = posted(service, model_bytes, batch_bytes, options={"output": FORGED})
    assert analysis["numbers"] is None
    wanted = {
        "lambda_max": {"lower": 0.5, "upper": 0.75},
        "loss": 0.5,
        "accuracy": 1.0,
        "parameters": len(model_bytes),
        "device": "cpu",
        "seconds": 1.5,
        "reliable": True,
    }
    assert service.ended(analysis["id"])["numbers"] == wanted
    [item] = service.client.get("/v1/analyses").json()["items"]
    assert item["numbers"] == wanted
    doubtful = posted(service, model_bytes, batch_bytes, options={"output": "doubtful"})
    assert service.ended(doubtful["id"])["numbers"]["reliable"] is False
    assert service.ended(doubtful["id"])["numbers"]["lambda_max"] is None


@pytest.mark.slow
@pytest.mark.parametrize("order", ["run", full("branch")])
def test_a_report_is_compared_with_the_last_one_of_its_series(
    service: Service, model_bytes: bytes, batch_bytes: bytes, order: str
) -> None:
    def markdown(labels: dict[str, str], seed: int, **options: Any) -> str:
        options = {"output": FORGED, "seed": seed, **options}
        analysis = posted(service, model_bytes, batch_bytes, labels=labels, options=options)
        service.ended(analysis["id"])
        report = service.client.get(f"/v1/analyses/{analysis['id']}/report", headers={"Accept": "text/markdown"})
        return report.text.split("\n\n")[1]

    series = {order: "a"}
    assert markdown({order: "b", "epoch": "1"}, 0).startswith("Nothing to compare it with")
    assert markdown({**series, "epoch": "2"}, 1).startswith("Nothing to compare it with")
    service.sql("UPDATE analyses SET lambda_max_lower = 0.1, lambda_max_upper = 0.2")
    assert markdown({**series, "epoch": "3"}, 2).startswith(f"Sharper than epoch 2 of the same {order}: ")
    service.sql("UPDATE analyses SET reliable = false WHERE labels->>'epoch' = '3'")
    assert markdown(series, 3).startswith(f"Sharper than epoch 2 of the same {order}: ")
    assert "2/η = 2" in markdown(series, 4, learning_rate=1.0)


SORTED = {
    "-created": "43210",
    "created": "01234",
    "-loss": "10342",
    "loss": "30142",
    "-lambda_max": "30142",
    "lambda_max": "10342",
    "parameters": "13042",
}


@pytest.mark.slow
def test_lists_are_sorted_and_their_pages_follow_each_other(
    api: Service, model_bytes: bytes, batch_bytes: bytes
) -> None:
    numbers = {"0": (0.5, 1.0, 2**60), "1": (0.75, 0.25, 7), "3": (1e-300, 2.5, 2**60 - 1)}
    for number in range(5):
        analysis = posted(api, model_bytes, batch_bytes, labels={"n": str(number)}, name=f"Run_{number}%", fresh=True)
        loss, sharpness, parameters = numbers.get(str(number), (None, None, None))
        api.sql(
            "UPDATE analyses SET loss = %s, accuracy = 1, lambda_max_lower = %s, lambda_max_upper = %s, parameters = %s"
            " WHERE id = %s",
            *(loss, sharpness, sharpness, parameters, analysis["id"]),
        )

    def listed(path: str) -> str:
        seen, following = "", path
        while following is not None:
            page = api.client.get(following).json()
            seen += "".join(item["labels"]["n"] for item in page["items"])
            following = page["next"]
        return seen

    for sort, wanted in SORTED.items():
        for limit in (1, 2, 5):
            assert listed(f"/v1/analyses?sort={sort}&limit={limit}") == wanted, (sort, limit)
    assert listed("/v1/analyses?name=RUN_3%25&limit=1") == "3"
    assert listed("/v1/analyses?name=un-") == ""
    assert listed("/v1/analyses?name=M.ONNX&sort=created&limit=2") == "01234"
    assert listed(f"/v1/analyses?model={analysis['model']}&batch={analysis['batch']}&limit=3") == "43210"
    assert listed(f"/v1/analyses?model={analysis['batch']}") == ""


def test_a_list_that_makes_no_sense_is_a_problem(api: Service) -> None:
    for query in ("sort=size", "sort=loss&after=5", "after=5:1.5", "sort=loss&after=5:nan", "name=%00", "model=x"):
        response = api.client.get(f"/v1/analyses?{query}")
        assert (response.status_code, response.json()["code"]) == (422, "invalid_request")
        assert response.json()["errors"][0]["pointer"].split("/")[-1] in query
