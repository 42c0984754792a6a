"""Lines of the log: whose they are, what form they have, and what is never in them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
from support.service import Files, Service, StartService, npz_batch, until

from service.keys import hash_key, new_key

Lines = list[Any]

PASSWORD = "tr0ub4dor"  # noqa: S105 - nobody's


def submit(service: Service, files: Files, output: str = "") -> str:
    form = {**files, "request": json.dumps({"options": {"output": output or None}}).encode()}
    headers = {"X-Request-ID": "mine"}
    identifier: str = service.client.post("/v1/analyses", files=form, headers=headers).json()["id"]
    return identifier


@contextmanager
def captured() -> Iterator[Lines]:
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        yield lines


def events(lines: Lines, name: str) -> Lines:
    """Lines of this event, once there are any."""
    found: Lines = until(lambda: [line for line in lines if line["event"] == name])
    return found


def printed(program: str, *, form: str) -> str:
    """What a process logs on stderr."""
    whole = (
        f"from service import logs\nlogs.configure(form={form!r}, level='info')\nimport structlog, logging\n{program}"
    )
    return subprocess.run([sys.executable, "-c", whole], capture_output=True, text=True, check=True).stderr


def test_a_request_leads_from_its_identifier_to_its_analysis(api: Service, files: Files) -> None:
    with captured() as lines:
        analysis = submit(api, files)
        line = events(lines, "request")[0]
    assert (line["request_id"], line["analysis"], line["tenant"]) == ("mine", analysis, "default")


def test_a_request_about_an_analysis_names_it(api: Service, files: Files) -> None:
    analysis = submit(api, files)
    with captured() as lines:
        api.client.get(f"/v1/analyses/{analysis}/report")
        line = events(lines, "request")[0]
    assert line["analysis"] == analysis


def test_nothing_of_one_request_sticks_to_the_next(start_service: StartService) -> None:
    key = new_key()
    api = start_service(worker=False, api_keys=f"team:{hash_key(key)}")
    with captured() as lines:
        api.client.get("/v1/capabilities", headers={"Authorization": f"Bearer {key}"})
        api.client.get("/v1/capabilities")
        until(lambda: len(events(lines, "request")) == 2)
    assert [line.get("tenant") for line in events(lines, "request")] == ["team", None]


@pytest.mark.slow
def test_what_a_worker_does_carries_analysis_job_device_and_attempt(service: Service, files: Files) -> None:
    with captured() as lines:
        analysis = submit(service, files)
        service.ended(analysis)
        ended = events(lines, "analysis_ended")[0]
    assert (ended["analysis"], ended["device"], ended["attempt"], ended["tenant"]) == (analysis, "cpu", 1, "default")
    assert ended["job"] > 0


def test_what_an_analysis_wrote_is_logged_under_its_name_when_it_fails(service: Service, files: Files) -> None:
    with captured() as lines:
        analysis = submit(service, files, "crash")
        service.ended(analysis)
        told = events(lines, "child_log")
    assert {line["analysis"] for line in told} == {analysis}
    assert all("\n" not in line["line"] for line in told)


FAILING = f"""
def connect(address, password):
    headers = {{"authorization": "Bearer abc123"}}
    raise OSError(f"can't reach {{address}}")
try:
    connect("postgresql://wsb:{PASSWORD}@db/wsb", "{PASSWORD}")
except OSError:
    structlog.get_logger("wsb").exception("failed", path="/x")
"""


def test_a_traceback_in_json_is_one_line() -> None:
    line = json.loads(printed(FAILING, form="json"))
    assert (line["event"], line["level"], line["path"]) == ("failed", "error", "/x")
    assert line["exception"][0]["exc_type"] == "OSError"
    assert line["exception"][0]["frames"][-1]["name"] == "connect"


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_traceback_shows_neither_local_variables_nor_passwords(form: str) -> None:
    text = printed(FAILING, form=form)
    assert "can't reach postgresql://wsb:***@db/wsb" in text
    assert PASSWORD not in text
    assert "abc123" not in text


SECRETS = [
    ("postgresql://wsb:{secret}@host:5432/wsb", "postgresql://wsb:***@host:5432/wsb"),
    ("postgresql+psycopg://wsb:{secret}/?@host", "postgresql+psycopg://wsb:***@host"),
    ("host=db password={secret} user=wsb", "host=db password=*** user=wsb"),
    ("Authorization: Bearer {secret}", "Authorization: Bearer ***"),
    ("authorization: basic {secret}==", "authorization: basic ***"),
    ("key wsb_" + "{secret}" + "A" * 34 + " was sent", "key wsb_*** was sent"),
]
LOGGERS = ("structlog.get_logger('x').warning({!r})", "logging.getLogger('x').warning({!r})")


@pytest.mark.parametrize("form", ["json", "console"])
def test_secrets_are_blanked_in_every_line(form: str) -> None:
    calls = [(logger.format(text.format(secret=PASSWORD)), shown) for text, shown in SECRETS for logger in LOGGERS]
    lines = printed("\n".join(call for call, _ in calls), form=form).splitlines()
    for line, (call, shown) in zip(lines, calls, strict=True):
        assert shown in line, call
        assert PASSWORD not in line, call


def test_harmless_text_stays_as_it_is() -> None:
    text = "http://127.0.0.1:8000/v1/models a@b wsb_engine.formats bearer of news"
    assert json.loads(printed(f"structlog.get_logger('x').info({text!r})", form="json"))["event"] == text


def test_a_path_can_forge_no_line_and_steer_no_terminal() -> None:
    path = "/x\n2026-01-01 [error    ] forged\x1b[2J"
    text = printed(f"structlog.get_logger('x').info('request', path={path!r})", form="console")
    assert len(text.splitlines()) == 1
    assert "\x1b" not in text.replace("\x1b[0m", "")
    assert "forged" in text


@pytest.fixture
def serving(database_url: str, tmp_path: Path) -> Iterator[tuple[httpx.Client, Path, str]]:
    """`wsb serve` with one worker: a client, its log so far, and the key."""
    key, log = new_key(), tmp_path / "log"
    # The test's Postgres trusts whoever reaches its socket, whatever the password.
    address = database_url.replace("postgres:@", f"postgres:{PASSWORD}@")
    assert PASSWORD in address
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "WSB_DATABASE_URL": address,
        "WSB_DATA_DIR": str(tmp_path / "data"),
        "WSB_API_KEYS": f"team:{hash_key(key)}",
        "WSB_LOG_FORMAT": "json",
        "WSB_LOG_LEVEL": "debug",
    }
    command = [sys.executable, "-m", "service.cli.commands", "serve", "--port", "0", "--workers", "1"]
    with (
        log.open("wb") as stderr,
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split()[-1]
            with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60) as client:
                yield client, log, key
        finally:
            process.terminate()
            process.wait(60)


@pytest.mark.slow
def test_a_whole_service_logs_json_without_any_secret(serving: tuple[httpx.Client, Path, str], files: Files) -> None:
    client, log, key = serving
    response = client.post(
        "/v1/analyses",
        files={**files, "batch": npz_batch(features=7)},
        headers={"X-Request-ID": "mine", "Prefer": "wait=60"},
    )
    assert response.status_code == 422
    analysis = response.json()["analysis"]

    def of(event: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in log.read_text().rpartition("\n")[0].splitlines()]
        return [line for line in lines if line["event"] == event]

    (request,) = until(lambda: of("request"))
    assert (request["analysis"], request["tenant"], request["request_id"]) == (analysis, "team", "mine")
    (ended,) = of("analysis_ended")
    assert (ended["analysis"], ended["tenant"], ended["device"], ended["attempt"]) == (analysis, "team", "cpu", 1)
    text = log.read_text()
    for secret in (PASSWORD, key, hash_key(key)):
        assert secret not in text
