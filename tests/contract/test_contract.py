"""The live service against its own specification: schemathesis with all checks, and its stateful phase."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.forms import full
from support.served import served

from service.keys import hash_key, new_key

SEED = int(os.environ.get("WSB_TEST_SEED", "1"))
TESTS = Path(__file__).parents[1]


def fuzz(url: str, folder: Path, key: str, *, examples: int, phases: str, in_full: bool) -> str:
    """What schemathesis printed; fails the test if it found anything."""
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", "--checks", "all"),
        *("--phases", phases, "--seed", str(SEED), "--max-examples", str(examples)),
        *("--header", f"Authorization: Bearer {key}", "--no-color", "--generation-database", "none"),
        *("--suppress-health-check", "all", "--continue-on-failure", "--request-timeout", "90"),
    ]
    path = os.pathsep.join(map(str, (TESTS.parent, TESTS)))
    hooks = {"SCHEMATHESIS_HOOKS": "contract.hooks", "PYTHONPATH": path, "WSB_TEST_FULL": str(int(in_full))}
    environment = {**os.environ, **hooks}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    (folder / "schemathesis.txt").write_text(done.stdout)
    print(done.stdout[-6000:], done.stderr[-2000:])
    assert done.returncode == 0
    return done.stdout


def generated(output: str) -> int:
    """How many requests were made."""
    found = re.search(r"(\d+) generated", output)
    assert found is not None
    return int(found[1])


@pytest.mark.parametrize(
    ("examples", "phases", "in_full", "least"),
    [(1, "examples,fuzzing", False, 50), full(100, "examples,coverage,fuzzing,stateful", True, 2000)],
    ids=["short", "full"],
)
def test_nothing_that_a_client_can_send_makes_the_service_break_its_specification(
    tmp_path: Path, examples: int, phases: str, in_full: bool, least: int
) -> None:
    key = new_key()
    settings = {
        "WSB_API_KEYS": f"fuzz:{hash_key(key)}",
        "WSB_MAX_QUEUE": "100000",
        "WSB_MAX_QUEUE_PER_TENANT": "100000",
        "WSB_MAX_BASELINES": "100000",
        "WSB_MAX_BADGES": "100000",
        "WSB_MAX_WEBHOOKS": "10000",
        "WSB_WEBHOOKS_PRIVATE": "true",
    }
    with served(**settings, WSB_JOB_THREADS="1", WSB_LOG_LEVEL="error") as service:
        output = fuzz(service.url, tmp_path, key, examples=examples, phases=phases, in_full=in_full)
        assert generated(output) >= least
        assert service.client.get("/healthz").status_code == 200
