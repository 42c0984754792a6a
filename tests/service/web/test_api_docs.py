"""The page that shows the specification."""

from __future__ import annotations

import re

import pytest
from support.service import Service, StartService

from service.keys import hash_key, new_key


@pytest.fixture
def below(start_service: StartService) -> Service:
    return start_service(worker=False, root_path="/tools/wsb", api_keys=f"team:{hash_key(new_key())}")


def test_the_page_and_all_that_it_loads_come_from_the_service_and_need_no_key(below: Service) -> None:
    page = below.client.get("/docs")
    addresses = re.findall(r'(?:href|src|data-url)="([^"]+)"', page.text)
    assert len(addresses) >= 5
    for address in addresses:
        assert address.startswith("/tools/wsb/")
        assert below.client.get(address).status_code == 200, address
    script = below.client.get("/static/swagger-ui-bundle.js")
    assert script.headers["content-type"].startswith("text/javascript")
    assert "SwaggerUIBundle" in script.text
    assert "swagger-ui" in below.client.get("/static/swagger-ui.css").text


def test_the_page_has_no_script_but_files(below: Service) -> None:
    page = below.client.get("/docs")
    assert re.findall(r"<script[^>]*>([^<]*)</script>", page.text) == ["", ""]
    policy = dict(part.strip().split(" ", 1) for part in page.headers["content-security-policy"].split(";"))
    assert (policy["script-src"], policy["default-src"], policy["connect-src"]) == ("'self'", "'none'", "'self'")


def test_nothing_else_of_the_package_is_served(below: Service) -> None:
    for name in ("redoc.standalone.js", "favicon.png", "swagger-ui-nothing.js"):
        assert below.client.get(f"/static/{name}").status_code == 401
