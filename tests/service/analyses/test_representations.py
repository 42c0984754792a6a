"""The report in every form, over HTTP and from the command."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from support.command import wsb
from support.service import Service, npz_batch, onnx_mlp

from service.analyses.representations import JSON, NotAcceptableError, negotiated
from wsb_engine.report import Report

HTML, JUNIT, MARKDOWN = "text/html", "application/junit+xml", "text/markdown"
POLICY = {"rule": [{"metric": "loss.value", "op": "<=", "limit": 0.4}]}


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (None, JSON),
        ("", JSON),
        ("*/*", JSON),
        ("application/*", JSON),
        ("text/*", MARKDOWN),
        ("text/html", HTML),
        ("TEXT/HTML; charset=utf-8", HTML),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", HTML),
        ("application/junit+xml, application/json", JSON),
        ("application/junit+xml, application/json;q=0.9", JUNIT),
        ("text/markdown;q=0.5, text/html;q=0.4, */*;q=0.1", MARKDOWN),
        ("application/json;q=0, */*", MARKDOWN),
        ("*/*;q=0.5, application/json;q=0.2, text/html ; q=0.7", HTML),
        ("text/*, text/markdown;q=0", HTML),
        ("text/html;q=nonsense, application/json;q=0.1", JSON),
        (", ,text/html", HTML),
    ],
)
def test_the_form_is_the_one_that_is_preferred(accept: str | None, kind: str) -> None:
    assert negotiated(accept) == kind


@pytest.mark.parametrize("accept", ["image/png", "application/xml", "application/json;q=0", "*/*;q=0", "text", "x/*"])
def test_a_form_that_there_is_not_is_told(accept: str) -> None:
    with pytest.raises(NotAcceptableError):
        negotiated(accept)


@pytest.fixture
def report_path(service: Service) -> str:
    request = json.dumps({"policy": POLICY})
    files = {"model": onnx_mlp(), "batch": npz_batch(), "request": (None, request, "application/json")}
    response = service.client.post("/v1/analyses", files=files, headers={"Prefer": "wait=30"})
    return str(response.headers["content-location"])


def test_each_form_has_an_entity_tag_of_its_own_and_the_verdict(service: Service, report_path: str) -> None:
    tags = set()
    for kind in (JSON, MARKDOWN, HTML, JUNIT):
        response = service.client.get(report_path, headers={"Accept": kind})
        assert response.status_code == 200
        assert response.headers["content-type"].partition(";")[0] == kind
        assert response.headers["vary"] == "Accept"
        tags.add(response.headers["etag"])
        again = {"Accept": kind, "If-None-Match": response.headers["etag"]}
        kept = service.client.get(report_path, headers=again)
        assert (kept.status_code, kept.content, kept.headers["etag"]) == (304, b"", response.headers["etag"])
        if kind == JSON:
            Report.model_validate_json(response.text)
        elif kind == JUNIT:
            assert ElementTree.fromstring(response.content).get("failures") == "1"  # noqa: S314 - ours
        else:
            assert "Failed" in response.text or "failed" in response.text
    assert len(tags) == 4


def test_the_tag_of_another_form_is_no_match(service: Service, report_path: str) -> None:
    tag = service.client.get(report_path).headers["etag"]
    response = service.client.get(report_path, headers={"Accept": MARKDOWN, "If-None-Match": tag})
    assert response.status_code == 200


def test_a_form_that_there_is_not_is_a_problem(service: Service, report_path: str) -> None:
    response = service.client.get(report_path, headers={"Accept": "image/png"})
    assert (response.status_code, response.json()["code"]) == (406, "not_acceptable")
    assert "text/markdown" in response.json()["advice"]


def test_the_page_can_run_nothing_where_it_is_served(service: Service, report_path: str) -> None:
    response = service.client.get(report_path, headers={"Accept": HTML})
    assert response.headers["content-security-policy"].startswith("sandbox; default-src 'none'")


@pytest.mark.slow
def test_analyze_writes_the_report_as_a_page_and_as_markdown(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(onnx_mlp())
    (tmp_path / "batch.npz").write_bytes(npz_batch())
    page, notes = tmp_path / "report.html", tmp_path / "report.md"
    files = (str(tmp_path / "model.onnx"), str(tmp_path / "batch.npz"))
    result = wsb("analyze", *files, "--html", str(page), "--markdown", str(notes))
    assert (result.returncode, "λ_max" in result.stdout) == (0, True), result.stderr
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert "λ_max" in notes.read_text(encoding="utf-8").replace("\\_", "_")


@pytest.mark.slow
def test_analyze_finds_out_first_that_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(onnx_mlp())
    (tmp_path / "batch.npz").write_bytes(npz_batch())
    files = (str(tmp_path / "model.onnx"), str(tmp_path / "batch.npz"))
    result = wsb("analyze", *files, "--html", "/nonexistent/report.html")
    assert (result.returncode, result.stdout) == (2, "")
    assert "/nonexistent/report.html can't be written" in result.stderr
