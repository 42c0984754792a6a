"""A client that a public generator makes of the specification, through the same flow as our own."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from support.service import Service

from wsb import Client, ClientError

ROOT = Path(__file__).parents[3]
PYTHON = Path(os.environ.get("WSB_TEST_GENERATOR", ROOT / ".generator")) / "bin" / "python"
FLOW = ROOT / "tests" / "support" / "generated_flow.py"
CONFIGURATION = """
post_hooks: []
content_type_overrides: {image/svg+xml: application/octet-stream}
"""


@pytest.fixture
def generated(tmp_path: Path) -> Path:
    """Folder with the generated package."""
    if not PYTHON.exists():
        reason = "no generator in .generator: run scripts/generator"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    (tmp_path / "config.yml").write_text(CONFIGURATION)
    command = [
        *(PYTHON.with_name("openapi-python-client"), "generate", "--meta", "none", "--fail-on-warning"),
        *("--path", ROOT / "openapi" / "openapi.json", "--config", tmp_path / "config.yml"),
        *("--output-path", tmp_path / "generated"),
    ]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return tmp_path


@pytest.mark.slow  # the generator takes long; our client goes through the same flow
def test_a_generated_client_goes_through_the_whole_flow_and_keeps_errors(
    service: Service, generated: Path, model_bytes: bytes, batch_bytes: bytes
) -> None:
    (generated / "m").write_bytes(model_bytes)
    (generated / "b").write_bytes(batch_bytes)
    run = [str(PYTHON), str(FLOW), service.url, "m", "b"]
    environment = {**os.environ, "PYTHONPATH": str(generated)}
    done = subprocess.run(run, cwd=generated, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["events"][0] == "state"
    assert told["events"][-1] == "end"
    assert told["parameters"] == len(model_bytes)
    assert told["nothing"] == [404, "blob_not_found"]
    assert told["invalid"] == [422, "invalid_request", ["/priority"]]
    assert told["cancelled"] == "cancelled"
    assert told["final"] == [409, "analysis_final", told["analysis"]]


def test_our_client_goes_through_the_same_flow(service: Service, model_bytes: bytes, batch_bytes: bytes) -> None:
    with Client(service.url, http=service.client) as client:
        analysis = client.submit(model_bytes, batch_bytes)
        assert [event.name for event in client.events(analysis)][-1] == "end"
        assert client.report(analysis).model.parameters.count == len(model_bytes)
        refused = {}
        for name, given in {"nothing": {"model": "sha256:" + "0" * 64}, "invalid": {"priority": 1000}}.items():
            with pytest.raises(ClientError) as caught:
                client.submit(**{"model": model_bytes, "batch": batch_bytes, **given})
            refused[name] = (caught.value.status, caught.value.code, [error.pointer for error in caught.value.errors])
        assert refused == {"nothing": (404, "blob_not_found", []), "invalid": (422, "invalid_request", ["/priority"])}
        slow = client.submit(model_bytes, batch_bytes, {"output": "sleep:60"})
        client.cancel(slow)
        assert client.wait(slow).state == "cancelled"
        with pytest.raises(ClientError) as caught:
            client.cancel(analysis)
        assert (caught.value.code, caught.value.analysis) == ("analysis_final", str(analysis.id))
