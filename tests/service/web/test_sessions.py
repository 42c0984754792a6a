"""Signing in and out, and what keeps other sites from using what a browser may."""

from __future__ import annotations

import http.cookies
from collections.abc import Callable
from urllib.parse import urlsplit

import pytest
from support.client import connect
from support.pages import Visitor
from support.service import Service, StartService, npz_batch, onnx_mlp

from service.keys import hash_key, new_key
from service.web.sessions import COOKIE

Visit = Callable[..., Visitor]

KEY, OTHER_KEY = (f"wsb_{letter * 43}" for letter in "ab")
KEYS = f"team:{hash_key(KEY)},other:{hash_key(OTHER_KEY)}"
CROSS_SITE = {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}


@pytest.fixture
def locked(borrow_service: StartService) -> Service:
    return borrow_service(worker=False, api_keys=KEYS)


@pytest.fixture
def member(locked: Service, visit: Visit) -> Visitor:
    """Someone who has signed in."""
    visitor = visit(locked)
    assert visitor.sign_in(KEY).status_code == 303
    return visitor


def test_who_has_not_signed_in_is_led_to_the_form_and_then_to_what_was_asked_for(locked: Service, visit: Visit) -> None:
    visitor = visit(locked)
    response = visitor.get("/series?label=run:a%20b")
    assert response.status_code == 303
    assert response.headers["location"] == "/sign-in?next=/series%3Flabel%3Drun%3Aa%2520b"
    form = visitor.client.get(response.headers["location"])
    assert 'name="next" value="/series?label=run:a%20b"' in form.text
    signed_in = visitor.sign_in(KEY, next="/series?label=run:a%20b")
    assert (signed_in.status_code, signed_in.headers["location"]) == (303, "/series?label=run:a%20b")
    assert visitor.client.get(signed_in.headers["location"]).status_code == 200
    assert visitor.get("/sign-in").headers["location"] == "/"


@pytest.mark.parametrize("next_", ["//evil.example", "/\\evil.example", "https://evil.example", "", "/a\r\nb", "evil"])
def test_signing_in_leads_nowhere_else(locked: Service, visit: Visit, next_: str) -> None:
    assert visit(locked).sign_in(KEY, next=next_).headers["location"] == "/"


def test_the_cookie_is_kept_from_scripts_and_other_sites_and_holds_nothing_of_the_key(
    locked: Service, visit: Visit
) -> None:
    visitor = visit(locked)
    header = visitor.sign_in(KEY).headers["set-cookie"]
    attributes = {part.strip().lower() for part in header.split(";")[1:]}
    assert attributes == {"httponly", "path=/", "samesite=strict", "max-age=43200"}
    token = visitor.client.cookies[COOKIE]
    assert len(token) == 43
    assert KEY not in header
    assert hash_key(KEY) not in header
    stored = locked.sql("SELECT sha256, key_sha256, expires_at - now() < interval '12 hours' FROM sessions")
    assert stored == [(hash_key(token), hash_key(KEY), True)]


def test_behind_tls_the_cookie_is_for_tls_only(locked: Service, visit: Visit) -> None:
    visitor = visit(locked)
    visitor.client.headers["X-Forwarded-Proto"] = "https"
    assert "; Secure" in visitor.sign_in(KEY).headers["set-cookie"]


@pytest.mark.parametrize("key", ["", "wrong", OTHER_KEY[:-1], f"{KEY}x", "ü", hash_key(KEY)])
def test_a_key_that_is_none_signs_nobody_in(locked: Service, visit: Visit, key: str) -> None:
    response = visit(locked).sign_in(key)
    assert (response.status_code, "This key is unknown." in response.text) == (403, True)
    assert "set-cookie" not in response.headers
    assert locked.sql("SELECT count(*) FROM sessions") == [(0,)]


def test_a_second_sign_in_ends_the_first_session_of_the_browser(locked: Service, member: Visitor) -> None:
    first = member.client.cookies[COOKIE]
    member.sign_in(OTHER_KEY)
    assert member.client.cookies[COOKIE] != first
    assert locked.sql("SELECT count(*) FROM sessions") == [(1,)]
    assert "other" in member.get("/").text


def test_signing_out_ends_the_session_for_whoever_has_the_cookie(locked: Service, member: Visitor) -> None:
    token = member.client.cookies[COOKIE]
    response = member.post("/sign-out")
    assert (response.status_code, response.headers["location"]) == (303, "/sign-in")
    assert COOKIE not in member.client.cookies
    with connect(locked.url, cookies={COOKIE: token}) as thief:
        assert thief.get("/v1/analyses").status_code == 401


def test_a_session_ends_with_its_time(locked: Service, member: Visitor) -> None:
    locked.sql("UPDATE sessions SET expires_at = now()")
    assert member.get("/").headers["location"] == "/sign-in"
    member.sign_in(KEY)
    assert locked.sql("SELECT count(*) FROM sessions") == [(1,)]  # that of before is gone


@pytest.mark.slow
def test_a_session_survives_a_restart_and_ends_with_its_key(start_service: StartService, visit: Visit) -> None:
    before = start_service(worker=False, api_keys=KEYS)
    visitor = visit(before)
    visitor.sign_in(KEY)
    for keys, status in ((KEYS, 200), (f"other:{hash_key(OTHER_KEY)}", 303), (f"team:{hash_key(new_key())}", 303)):
        after = start_service(worker=False, api_keys=keys)
        restarted = visit(after)
        restarted.client.cookies.update(visitor.client.cookies)
        assert restarted.get("/").status_code == status


def test_quotes_in_a_cookie_are_not_undone(locked: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """The standard library takes a second to undo those of 15 000 backslashes."""
    monkeypatch.setattr(http.cookies, "_unquote", None)
    cookie = 'wsb="' + "\\" * 15_000 + '"'
    assert locked.client.get("/v1/analyses", headers={"Cookie": cookie}).status_code == 401


@pytest.mark.parametrize("cookie", ["x", "x" * 5000, "", '"', "a b;;=", "\xff"])
def test_a_cookie_of_nobody_signs_nobody_in(locked: Service, cookie: str) -> None:
    response = locked.client.get("/v1/analyses", headers={"Cookie": f"wsb={cookie}".encode("latin-1")})
    assert response.status_code == 401


def test_pages_of_someone_who_has_signed_in_are_not_stored(member: Visitor) -> None:
    assert member.get("/").headers["cache-control"] == "no-store"


def test_the_interface_may_be_read_by_a_session(member: Visitor) -> None:
    analysis = member.asked(labels="run: a")
    assert member.get(f"/v1/analyses/{analysis}").json()["labels"] == {"run": "a"}
    with member.client.stream("GET", f"/v1/analyses/{analysis}/events") as events:
        assert events.status_code == 200
        assert next(events.iter_lines()).startswith("retry:")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 403),
        ({"X-CSRF-Token": "wrong"}, 403),
        ({"X-CSRF-Token": "right", **CROSS_SITE}, 403),
        ({"X-CSRF-Token": "right", "Origin": "null"}, 403),
        ({"X-CSRF-Token": "right"}, 201),
    ],
)
def test_the_interface_is_changed_by_a_session_only_with_its_token_and_from_its_own_pages(
    locked: Service, member: Visitor, headers: dict[str, str], status: int
) -> None:
    token = member.csrf()
    sent = {name: token if value == "right" else value for name, value in headers.items()}
    response = member.client.post("/v1/models", content=onnx_mlp(), headers={**sent, "Accept": "application/json"})
    assert response.status_code == status
    assert (locked.stored() == []) == (status == 403)


def test_a_key_needs_no_token_wherever_it_comes_from(locked: Service) -> None:
    headers = {"Authorization": f"Bearer {KEY}", **CROSS_SITE}
    assert locked.client.post("/v1/models", content=onnx_mlp(), headers=headers).status_code == 201


@pytest.mark.parametrize("token", ["", "wrong", "ü"])
def test_forms_without_the_sessions_token_change_nothing(locked: Service, member: Visitor, token: str) -> None:
    analysis = member.asked()
    assert member.ask(csrf=token).status_code == 403
    for action in (f"/analyses/{analysis}/cancel", f"/analyses/{analysis}/delete", "/sign-out"):
        assert member.post(action, csrf=token).status_code == 403
    assert locked.sql("SELECT state FROM analyses") == [("queued",)]
    assert locked.sql("SELECT count(*) FROM sessions") == [(1,)]


def test_files_that_come_before_the_token_are_not_stored(locked: Service, member: Visitor) -> None:
    parts = [("model", ("m", onnx_mlp())), ("batch", ("b", npz_batch())), ("csrf", (None, member.csrf()))]
    assert member.client.post("/analyses", files=parts).status_code == 403
    assert locked.stored() == locked.leftovers() == []


def test_the_token_of_another_session_is_none(locked: Service, member: Visitor, visit: Visit) -> None:
    other = visit(locked)
    other.sign_in(KEY)
    assert member.ask(csrf=other.csrf()).status_code == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "https://evil.example"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "null"},
        {"Origin": "http://["},
    ],
)
@pytest.mark.parametrize("path", ["/sign-in", "/analyses", "/v1/models", "/v1/analyses"])
def test_without_keys_too_a_page_of_another_site_changes_nothing(
    api: Service, headers: dict[str, str], path: str
) -> None:
    response = api.client.post(path, headers=headers, content=b"x")
    assert (response.status_code, response.json()["code"]) == (403, "cross_site")


def test_the_origin_is_that_which_the_browser_sees(api: Service) -> None:
    port = urlsplit(api.url).port
    for host in (f"127.0.0.1:{port}", f"LOCALHOST:{port}"):
        headers = {"Host": host, "Origin": f"http://{host.lower()}"}
        assert api.client.post("/v1/models", content=onnx_mlp(), headers=headers).status_code in (200, 201)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.", "1.2"])
def test_a_name_that_a_stranger_may_have_made_is_not_answered(api: Service, host: str) -> None:
    for path in ("/", "/v1/analyses", "/healthz"):
        response = api.client.get(path, headers={"Host": host})
        assert (response.status_code, response.json()["code"]) == (421, "misdirected_request")


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]:8000", "localhost:8000", "wsb.localhost", "wsb", "192.0.2.1"])
def test_addresses_and_local_names_are_answered(api: Service, host: str) -> None:
    assert api.client.get("/v1/analyses", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("settings", [{"api_keys": KEYS}, {"allow_anonymous": True}])
def test_with_keys_or_behind_a_proxy_every_name_is_answered(
    start_service: StartService, settings: dict[str, object]
) -> None:
    service = start_service(worker=False, **settings)
    assert service.client.get("/healthz", headers={"Host": "wsb.example"}).status_code == 200


def test_without_keys_nobody_signs_in(api: Service, visit: Visit) -> None:
    assert visit(api).get("/sign-in").headers["location"] == "/"
    assert "Sign out" not in visit(api).get("/").text


def test_a_link_of_another_site_finds_the_session_that_the_browser_kept_back(locked: Service, visit: Visit) -> None:
    response = visit(locked).get("/series", headers={"Sec-Fetch-Site": "cross-site"})
    assert (response.status_code, '<meta http-equiv="refresh" content="0">' in response.text) == (200, True)


def test_a_database_that_is_away_signs_nobody_in_and_says_so(locked: Service, member: Visitor, postgres: str) -> None:
    from support.outages import close_database

    close_database(locked, postgres)
    response = member.get("/")
    assert (response.status_code, "database_unavailable" in response.text) == (503, True)
