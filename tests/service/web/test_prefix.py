"""The service below a path prefix, behind a proxy that strips it and behind one that does not."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from pydantic import ValidationError
from support.pages import Visitor
from support.service import Service, StartService

from service.keys import hash_key, new_key
from service.settings import Settings

Visit = Callable[..., Visitor]
KEY = new_key()


@pytest.fixture
def below(borrow_service: StartService) -> Service:
    return borrow_service(root_path="/tools/wsb/", api_keys=f"team:{hash_key(KEY)}")


@pytest.mark.slow
@pytest.mark.parametrize("sent", ["", "/tools/wsb"])
def test_every_address_in_a_page_has_the_prefix(below: Service, visit: Visit, sent: str) -> None:
    visitor = visit(below, sent)
    led = visitor.get("/series?label=a")
    assert led.headers["location"] == "/tools/wsb/sign-in?next=/series%3Flabel%3Da"
    signed_in = visitor.sign_in(KEY, next="/series?label=a")
    assert signed_in.headers["location"] == "/tools/wsb/series?label=a"
    assert "Path=/tools/wsb;" in signed_in.headers["set-cookie"]
    # A proxy that strips the prefix is not what the browser sees: the cookie is.
    visitor.client.headers["Cookie"] = signed_in.headers["set-cookie"].partition(";")[0]
    analysis = visitor.asked(labels="run: a")
    below_prefix = f"/analyses/{analysis}"
    pages = [visitor.get(path) for path in ("/", below_prefix, "/compare", "/series?label=run:a", "/nothing")]
    for page in pages:
        addresses = re.findall(r'(?:href|src|action|data-events)="(?!#)([^"]+)"', page.text)
        assert len(addresses) > 5
        assert [address for address in addresses if not address.startswith("/tools/wsb/")] == []
    for address in set(re.findall(r'(?:href|src)="/tools/wsb(/[^"#]*)', pages[0].text)):
        assert visitor.get(address.replace("&amp;", "&")).status_code == 200, address


@pytest.mark.parametrize("path", ["/healthz", "/tools/wsb/healthz", "/tools/wsb/sign-in"])
def test_what_is_public_is_so_with_the_prefix_and_without(below: Service, path: str) -> None:
    assert below.client.get(path).status_code == 200


@pytest.mark.parametrize("path", ["/tools/wsb/v1/analyses", "/tools/wsbx/healthz", "/tools/wsb/tools/wsb/healthz"])
def test_what_is_not_stays_so(below: Service, path: str) -> None:
    assert below.client.get(path).status_code == 401


@pytest.mark.parametrize("prefix", ["wsb", "/v1", "/static/x", "/analyses", "/a b", "/a//b", "https://x/wsb"])
def test_a_prefix_that_could_be_taken_for_something_else_is_refused(prefix: str) -> None:
    with pytest.raises(ValidationError, match="the prefix must look like /wsb"):
        Settings(_env_file=None, root_path=prefix)
