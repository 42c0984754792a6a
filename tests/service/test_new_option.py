"""An option of the engine is one field of ``Options``: flag, JSON field, form field and help follow from it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest
from support.service import npz_batch, onnx_mlp

pytestmark = pytest.mark.slow

# In a process of its own: everything that imports ``Options`` must find the one with more fields.
PROGRAM = """
import json
import sys
from pathlib import Path
from typing import Literal

from pydantic import Field

import wsb_engine.options


class Options(wsb_engine.options.Options):
    toy_kind: Literal["plain", "fancy"] = Field("plain", description="Which kind of toy.")
    toy_count: int = Field(3, ge=1, description="How many toys there are.")
    toy_names: tuple[str, ...] = Field(("one",), description="What the toys are called.")
    toy_loud: bool = Field(True, description="Whether the toys make a noise.")


wsb_engine.options.Options = Options

from starlette.testclient import TestClient
from typer.testing import CliRunner

from service.cli.commands import app
from service.server.app import create_app
from service.settings import Settings

url, folder = sys.argv[1:]
files = {name: Path(folder, name).read_bytes() for name in ("model", "batch")}
given = {"toy_kind": "fancy", "toy_count": 5, "toy_names": ["a", "b"], "toy_loud": False}
settings = Settings(_env_file=None, database_url=url, data_dir=Path(folder, "data"))
with TestClient(create_app(settings), follow_redirects=False) as client:
    request = {"request": json.dumps({"options": given})}
    sent = client.post("/v1/analyses", files={**files, **{n: t.encode() for n, t in request.items()}})
    fields = {"csrf": "", "toy_kind": "fancy", "toy_count": "5", "toy_names": "a b"}
    posted = client.post("/analyses", data=fields, files=files)
    bad = client.post("/v1/analyses", json={"model": "m", "batch": "b", "options": {"toy_count": 0}})
    wrong = client.post("/analyses", data={**fields, "toy_count": "0"}, files=files)
    result = {
        "api": client.get(sent.headers["location"]).json()["options"],
        "form": client.get("/v1" + posted.headers["location"]).json()["options"],
        "errors": [item["pointer"] for item in bad.json()["errors"]],
        "wrong": wrong.text,
        "schema": client.get("/openapi.json").json()["components"]["schemas"]["Options"]["properties"],
        "page": client.get("/").text,
    }
result["help"] = CliRunner().invoke(app, ["analyze", "--help"], env={"COLUMNS": "200"}).output
print(json.dumps(result))
"""


@pytest.fixture(scope="module")
def found(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("option")
    (folder / "model").write_bytes(onnx_mlp())
    (folder / "batch").write_bytes(npz_batch())
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("CREATE DATABASE new_option TEMPLATE template")
    url = postgres.replace("@/postgres?", "@/new_option?")
    command = [sys.executable, "-c", PROGRAM, url, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=Path.cwd())
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def test_the_command_has_a_flag_with_help(found: dict[str, Any]) -> None:
    for text in ("--toy-kind", "--toy-count", "--toy-names", "--toy-loud / --no-toy-loud", "How many toys there are."):
        assert text in found["help"]


def test_the_api_has_a_field_that_it_checks(found: dict[str, Any]) -> None:
    assert {name: found["api"][name] for name in found["api"] if name.startswith("toy")} == {
        "toy_kind": "fancy",
        "toy_count": 5,
        "toy_names": ["a", "b"],
        "toy_loud": False,
    }
    assert found["errors"] == ["/options/toy_count"]
    assert found["schema"]["toy_count"]["description"] == "How many toys there are."


def test_the_form_has_a_field_that_it_checks(found: dict[str, Any]) -> None:
    for text in (
        '<select id="toy_kind"',
        '<option value="fancy"',
        '<input id="toy_count" name="toy_count" type="text" inputmode="text" value="3"',
        '<input id="toy_names"',
        '<input id="toy_loud" name="toy_loud" type="checkbox" checked>',
        "How many toys there are.",
    ):
        assert text in found["page"]
    toys = {name: value for name, value in found["form"].items() if name.startswith("toy")}
    assert toys == {name: value for name, value in found["api"].items() if name.startswith("toy")}
    assert 'id="toy_count-error"' in found["wrong"]
