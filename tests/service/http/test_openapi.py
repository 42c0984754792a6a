from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from openapi_spec_validator import validate

from service.http.openapi import render
from service.server.app import create_app
from service.settings import Settings

COMMITTED = Path(__file__).parents[3] / "openapi" / "openapi.json"


@pytest.fixture(scope="module")
def specification() -> dict[str, Any]:
    return create_app(Settings(_env_file=None)).openapi()


def operations(specification: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (path, method, operation)
        for path, methods in specification["paths"].items()
        for method, operation in methods.items()
    ]


def test_the_committed_specification_is_the_one_that_the_code_gives() -> None:
    current = render(create_app(Settings(_env_file=None)))
    assert COMMITTED.read_text(encoding="utf-8") == current, "run: wsb openapi > openapi/openapi.json"


def test_the_specification_is_valid(specification: dict[str, Any]) -> None:
    validate(specification)


def test_the_specification_does_not_depend_on_settings(monkeypatch: pytest.MonkeyPatch, specification: object) -> None:
    monkeypatch.setenv("WSB_MAX_MODEL_BYTES", "5")
    assert create_app(Settings(_env_file=None)).openapi() == specification


def test_every_operation_has_a_summary_and_an_identifier_of_its_own(specification: dict[str, Any]) -> None:
    assert all(operation["summary"] for _, _, operation in operations(specification))
    identifiers = [operation["operationId"] for _, _, operation in operations(specification)]
    assert len(identifiers) == len(set(identifiers))


def errors(specification: dict[str, Any]) -> list[tuple[tuple[str, str, str], dict[str, Any]]]:
    return [
        ((path, method, status), response)
        for path, method, operation in operations(specification)
        for status, response in operation["responses"].items()
        if int(status) >= 400
    ]


def test_every_error_is_declared_as_the_one_problem(specification: dict[str, Any]) -> None:
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    declared = errors(specification)
    assert len(declared) > 50
    assert [place for place, response in declared if response["content"] != problem] == []
    assert [name for name in specification["components"]["schemas"] if name.endswith("Problem")] == ["Problem"]
    assert {"code", "detail", "errors", "advice"} < specification["components"]["schemas"]["Problem"][
        "properties"
    ].keys()


def test_every_error_names_its_codes(specification: dict[str, Any]) -> None:
    codes = {place: response.get("x-codes") for place, response in errors(specification)}
    assert [place for place, found in codes.items() if not found] == []
    assert codes[("/v1/analyses/{analysis_id}/events", "get", "503")] == ["too_many_streams", "database_unavailable"]
    assert {"invalid_request", "missing_part", "idempotency_mismatch"} < set(codes[("/v1/analyses", "post", "422")])


def test_creating_an_analysis_declares_each_status_it_can_give(specification: dict[str, Any]) -> None:
    responses = specification["paths"]["/v1/analyses"]["post"]["responses"]
    expected = "201 202 400 401 403 404 408 409 413 415 421 422 429 500 503 504 507"
    assert sorted(responses) == expected.split()


def codes(operation: dict[str, Any], status: str) -> set[str]:
    return set(operation["responses"][status]["x-codes"])


def test_every_operation_declares_what_is_refused_before_it_is_reached(specification: dict[str, Any]) -> None:
    for path, method, operation in operations(specification):
        assert codes(operation, "400") == {"malformed_request"}, (path, method)
        assert codes(operation, "421") == {"misdirected_request"}
        if method in ("post", "put", "delete"):
            assert codes(operation, "403") == {"scope_missing", "cross_site"}


def test_creating_an_analysis_declares_the_problems_of_a_baseline(specification: dict[str, Any]) -> None:
    operation = specification["paths"]["/v1/analyses"]["post"]
    assert {"analysis_not_found", "baseline_not_found"} <= codes(operation, "404")
    assert {"report_not_ready", "no_report"} <= codes(operation, "409")


def test_every_reference_leads_somewhere(specification: dict[str, Any]) -> None:
    text = json.dumps(specification)
    for name in specification["components"]["schemas"]:
        text = text.replace(f'"#/components/schemas/{name}"', "")
    assert "#/components/" not in text


@pytest.mark.slow
def test_the_specification_is_printed_without_a_database_and_without_torch(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from service.cli.commands import app\n"
        "app(['openapi'], standalone_mode=False)\n"
        "assert 'torch' not in sys.modules and 'onnxruntime' not in sys.modules"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "WSB_DATA_DIR": str(tmp_path / "data")}
    run = [sys.executable, "-c", program]
    result = subprocess.run(run, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(result.stdout)["openapi"].startswith("3.1")
    assert list(tmp_path.iterdir()) == []
