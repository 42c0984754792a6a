"""API keys: who is let in, who is not, and when that is decided."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from pydantic import ValidationError
from support.client import connect
from support.forms import thinned
from support.service import DEADLINE, Service, StartService, npz_batch, onnx_mlp, until

from service.http.bind_address import UnsafeBindAddressError, check_bind_address
from service.http.security import is_public
from service.keys import ApiKey, hash_key, new_key, parse_keys
from service.settings import Settings

EVERYWHERE = "0.0.0.0"  # noqa: S104 - what is to be refused
KEY, OTHER_KEY, NEXT_KEY = (f"wsb_{letter * 43}" for letter in "abc")


def entry(name: str, key: str) -> str:
    return f"{name}:{hash_key(key)}"


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
def locked(borrow_service: StartService) -> Service:
    return borrow_service(worker=False, api_keys=f"ci:{hash_key(KEY)}")


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    run = [sys.executable, "-m", "service.cli.commands", *arguments]
    path = os.pathsep.join(sys.path)
    values = {**os.environ, "PYTHONPATH": path, "COLUMNS": "200", "NO_COLOR": "1", **environment}
    return subprocess.run(run, env=values, capture_output=True, text=True, timeout=60, check=False)


def test_a_key_is_long_recognisable_and_new_each_time() -> None:
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    # 43 characters of base64 hold 256 bits.
    assert all(re.fullmatch(r"wsb_[A-Za-z0-9_\-]{43}", key) for key in keys)


@pytest.mark.slow
def test_a_new_key_opens_the_service_by_the_entry_that_is_printed_with_it(start_service: StartService) -> None:
    result = command("keys", "new", "team-a")
    assert result.returncode == 0
    printed = dict(line.split("=", 1) for line in result.stdout.splitlines())
    assert printed["WSB_API_KEYS"].startswith("team-a:")
    assert printed["WSB_API_KEY"] not in printed["WSB_API_KEYS"] + result.stderr
    service = start_service(worker=False, api_keys=printed["WSB_API_KEYS"])
    assert service.client.get("/v1/capabilities", headers=bearer(printed["WSB_API_KEY"])).status_code == 200


@pytest.mark.parametrize("name", thinned(["", "a b", "a:b", "a,b", "x" * 65, "ü"], 1))
def test_a_name_that_the_setting_could_not_hold_gets_no_key(name: str) -> None:
    result = command("keys", "new", "--", name)
    assert (result.returncode, result.stdout) == (2, "")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("ci", 1),
        (KEY, 1),
        (f"ci:{KEY}", 1),
        (f"ci:{hash_key(KEY)[:-1]}", 1),
        (f"c i:{hash_key(KEY)}", 1),
        (f":{hash_key(KEY)}", 1),
        (f"{entry('ci', KEY)},", 2),
        (f"{entry('ci', KEY)};{entry('b', OTHER_KEY)}", 1),
        (f"{entry('ci', KEY)},{entry('other', KEY)}", 2),
    ],
)
def test_a_malformed_setting_is_told_by_the_number_of_the_entry_and_without_what_may_be_a_key(
    text: str, number: int
) -> None:
    with pytest.raises(ValidationError) as caught:
        Settings(_env_file=None, api_keys=text)
    message = caught.value.errors()[0]["msg"]
    assert f"entry {number} " in message
    assert KEY not in message


def test_a_malformed_setting_ends_the_command_with_2(tmp_path: Path) -> None:
    result = command("serve", WSB_API_KEYS=f"ci:{KEY}", WSB_DATA_DIR=str(tmp_path / "data"))
    assert result.returncode == 2
    assert "WSB_API_KEYS" in result.stderr
    assert "wsb keys new" in result.stderr
    assert KEY not in result.stderr
    assert not (tmp_path / "data").exists()


def test_keys_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    text = f" {entry('a', KEY)} , {entry('a', NEXT_KEY).upper().replace('A:', 'a:')} "
    monkeypatch.setenv("WSB_API_KEYS", text)
    assert Settings(_env_file=None).api_keys == (ApiKey("a", hash_key(KEY)), ApiKey("a", hash_key(NEXT_KEY)))


def test_without_keys_everyone_is_let_in(api: Service) -> None:
    assert api.client.get("/v1/analyses").status_code == 200
    assert api.client.get("/v1/analyses", headers=bearer("anything")).status_code == 200


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        KEY,
        f"Basic {KEY}",
        f"Bearer {OTHER_KEY}",
        f"Bearer {KEY}x",
        f"Bearer {KEY[:-1]}",
        f"Bearer {hash_key(KEY)}",
        f"Bearer ci:{hash_key(KEY)}",
        f"Bearer {KEY.upper()}",
        b"Bearer \xff\xfe",
    ],
)
def test_whoever_has_no_key_is_turned_away(locked: Service, authorization: str | bytes | None) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    response = locked.client.get("/v1/analyses", headers=headers)
    assert (response.status_code, response.json()["code"]) == (401, "unauthorized")
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.headers["x-request-id"]


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_whoever_has_a_key_is_let_in(locked: Service, scheme: str) -> None:
    assert locked.client.get("/v1/analyses", headers={"Authorization": f"{scheme} {KEY}"}).status_code == 200


def test_two_keys_of_one_name_are_one_tenant_while_the_key_is_being_replaced(
    start_service: StartService, model_bytes: bytes
) -> None:
    service = start_service(worker=False, api_keys=f"{entry('ci', KEY)},{entry('ci', NEXT_KEY)}")
    path = service.client.post("/v1/models", content=model_bytes, headers=bearer(KEY)).headers["location"]
    assert service.client.get(path, headers=bearer(NEXT_KEY)).status_code == 200


def test_every_route_of_the_interface_wants_a_key_whatever_its_method(locked: Service) -> None:
    specification = locked.client.get("/openapi.json").json()
    checked = 0
    for path, operations in specification["paths"].items():
        for method, operation in operations.items():
            code = locked.client.request(method, re.sub(r"\{\w+\}", "x", path)).status_code
            if is_public(method.upper(), path):
                assert code != 401, path
                assert "security" not in operation
                continue
            assert code == 401, (method, path)
            assert operation["security"] == [{"ApiKey": []}, {}]
            assert "401" in operation["responses"]
            checked += 1
    assert checked >= 10
    public = {path for path in specification["paths"] if is_public("GET", path) and path.startswith("/v1/")}
    assert public == {"/v1/series/{label}/badge.svg"}
    assert specification["components"]["securitySchemes"]["ApiKey"]["scheme"] == "bearer"


@pytest.mark.parametrize("path", ["/metrics", "/v1/", "/v1/nothing", "/V1/analyses", "//v1/analyses", "/healthz/"])
def test_what_is_not_public_wants_a_key_whether_it_is_there_or_not(locked: Service, path: str) -> None:
    assert locked.client.get(path).status_code == 401


@pytest.mark.parametrize(
    ("path", "status"), [("/healthz", 200), ("/readyz", 503), ("/docs", 200), ("/openapi.json", 200)]
)
def test_probes_and_the_specification_want_no_key(locked: Service, path: str, status: int) -> None:
    assert locked.client.get(path).status_code == status


@pytest.mark.parametrize("path", ["/v1/models", "/v1/batches", "/v1/analyses", "/v1/comparisons"])
def test_the_answer_to_a_stranger_does_not_wait_for_the_body(locked: Service, path: str) -> None:
    address = urlsplit(locked.url)
    with socket.create_connection((address.hostname, address.port)) as connection:
        head = (
            f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nAuthorization: Bearer no\r\n"
            "Content-Length: 900000000\r\n\r\n"
        )
        connection.sendall(head.encode())
        connection.settimeout(DEADLINE)
        assert connection.recv(1000).startswith(b"HTTP/1.1 401 ")


def pieces(count: int) -> Iterator[bytes]:
    for _ in range(count):
        yield bytes(100_000)


def test_a_stranger_who_sends_a_long_body_all_the_same_is_told_and_leaves_nothing(locked: Service) -> None:
    response = locked.client.post("/v1/models", content=pieces(100))
    assert response.status_code == 401
    assert locked.stored() == []
    assert locked.leftovers() == []


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "::1", "localhost"])
def test_loopback_may_be_served_without_keys(host: str) -> None:
    check_bind_address(host, (), allow_anonymous=False)


@pytest.mark.parametrize("host", [EVERYWHERE, "::", "", "192.0.2.1", "2001:db8::1", "0", "::ffff:192.0.2.1"])
def test_other_addresses_may_not(host: str) -> None:
    with pytest.raises(UnsafeBindAddressError, match="wsb keys new"):
        check_bind_address(host, (), allow_anonymous=False)


def test_keys_or_an_explicit_word_open_every_address() -> None:
    check_bind_address(EVERYWHERE, parse_keys(entry("ci", KEY)), allow_anonymous=False)
    check_bind_address(EVERYWHERE, (), allow_anonymous=True)


def test_serving_strangers_without_keys_is_refused_before_anything_is_started(tmp_path: Path) -> None:
    result = command("serve", "--host", EVERYWHERE, "--port", "0", WSB_DATA_DIR=str(tmp_path / "data"), WSB_API_KEYS="")
    assert (result.returncode, result.stdout) == (2, "")
    for advice in ("WSB_API_KEYS", "wsb keys new", "WSB_ALLOW_ANONYMOUS"):
        assert advice in result.stderr
    assert not (tmp_path / "data").exists()


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    (tmp_path / "model.onnx").write_bytes(onnx_mlp())
    (tmp_path / "batch.npz").write_bytes(npz_batch())
    return str(tmp_path / "model.onnx"), str(tmp_path / "batch.npz")


def test_the_command_sends_its_key_and_never_prints_it(start_service: StartService, files: tuple[str, str]) -> None:
    service = start_service(api_keys=entry("ci", KEY))
    result = command("analyze", *files, "--url", service.url, WSB_API_KEY=KEY)
    assert result.returncode == 0, result.stderr
    assert KEY not in result.stdout + result.stderr
    assert service.sql("SELECT tenant FROM analyses") == [("ci",)]


@pytest.mark.slow
@pytest.mark.parametrize("key", thinned(["", OTHER_KEY, KEY[:10] + "\n" + KEY[10:], KEY + "ü"], 2))
def test_the_command_with_another_key_or_none_ends_with_2_and_does_not_print_it(
    locked: Service, files: tuple[str, str], key: str
) -> None:
    result = command("analyze", *files, "--url", locked.url, WSB_API_KEY=key)
    assert result.returncode == 2
    assert "WSB_API_KEY" in result.stderr
    assert not key or key not in result.stderr
    assert "Traceback" not in result.stderr


def test_the_tenant_is_in_the_log_of_its_requests_and_the_key_is_not(
    locked: Service, caplog: pytest.LogCaptureFixture
) -> None:
    with connect(locked.url) as client:
        client.get("/v1/analyses", headers=bearer(KEY))
    until(lambda: "path=/v1/analyses" in caplog.text)  # the line is written after the answer
    assert "tenant=ci" in caplog.text
    assert KEY not in caplog.text
