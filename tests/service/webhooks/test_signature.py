"""Signatures against the vector of the specification's own libraries, and where webhooks may lead."""

from __future__ import annotations

import asyncio
import base64
import socket
from ipaddress import ip_address
from typing import Any

import pytest

from service.webhooks.addresses import UnusableUrlError, is_public, resolved
from service.webhooks.signature import decoded, headers

PRIVATE = (
    *("127.0.0.1", "127.8.8.8", "0.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1", "169.254.169.254"),
    *("224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1"),
    *("::", "::1", "fe80::1", "fc00::1", "fd12::1", "fec0::1", "ff02::1", "2001:db8::1"),
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a00:1", "2002:7f00:1::"),
)
PUBLIC = ("1.1.1.1", "93.184.216.34", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101")


def test_a_message_is_signed_as_the_specification_says() -> None:
    found = headers(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1614265330,
        b'{"test": 2432232314}',
    )
    assert found == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


@pytest.mark.parametrize("size", [23, 65])
def test_a_secret_of_another_size_is_refused(size: int) -> None:
    for secret in (f"whsec_{base64.b64encode(bytes(size)).decode()}", base64.b64encode(bytes(32)).decode(), "whsec_%"):
        with pytest.raises(ValueError, match="24 to 64 random bytes"):
            decoded(secret)


def test_only_public_addresses_are_public() -> None:
    assert [text for text in PRIVATE if is_public(ip_address(text))] == []
    assert [text for text in PUBLIC if not is_public(ip_address(text))] == []


@pytest.mark.parametrize(
    "url",
    [
        *("http://1.1.1.1/", "ftp://1.1.1.1/", "https:///x", "https://me:pass@1.1.1.1/", "https://1.1.1.1:x/"),
        *(
            "https://[::1/",
            "https://127.0.0.1/",
            "https://[::ffff:127.0.0.1]/",
            "https://localhost/",
            "https://0x7f.1/",
        ),
        *("https://2130706433/", "https://a b/", "https://1.1.1.1/" + "a" * 2000),
    ],
)
def test_a_url_to_which_nothing_may_be_sent_is_refused(url: str) -> None:
    with pytest.raises(UnusableUrlError):
        asyncio.run(resolved(url, private=False))


def test_a_name_is_resolved_once_and_every_address_of_it_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    addresses = ["1.1.1.1"]

    async def getaddrinfo(self: Any, host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", getaddrinfo)
    found = asyncio.run(resolved("https://hooks.example:8443/a?b=c", private=False))
    assert (found.url, found.host, found.name) == ("https://1.1.1.1:8443/a?b=c", "hooks.example:8443", "hooks.example")
    assert asked == ["hooks.example"]
    addresses.append("10.0.0.1")
    with pytest.raises(UnusableUrlError, match="not public"):
        asyncio.run(resolved("https://hooks.example/", private=False))
