"""Signatures against the vector of the specification's own libraries, and where webhooks may lead."""

from __future__ import annotations

import asyncio
import base64
import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from support.receiver import SECRET, receiver

from service.kit.resolver import Resolver
from service.webhooks import deliveries
from service.webhooks.addresses import UnusableUrlError, is_public, resolved
from service.webhooks.repository import Delivery
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


class Known(Resolver):
    """A resolver whose names all have these addresses."""

    def __init__(self, *addresses: str) -> None:
        super().__init__(1, 60)
        self.found = list(map(ip_address, addresses))
        self.asked: list[str] = []

    async def addresses(self, name: str, port: int) -> list[IPv4Address | IPv6Address]:
        self.asked.append(name)
        return self.found


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
    with Resolver(1, 60) as resolver, pytest.raises(UnusableUrlError):
        asyncio.run(resolved(url, resolver, private=False))


def test_a_name_is_resolved_once_and_every_address_of_it_is_checked() -> None:
    known = Known("1.1.1.1")
    found = asyncio.run(resolved("https://hooks.example:8443/a?b=c", known, private=False))
    assert (found.url, found.host, found.name) == ("https://1.1.1.1:8443/a?b=c", "hooks.example:8443", "hooks.example")
    assert known.asked == ["hooks.example"]
    with pytest.raises(UnusableUrlError, match="not public"):
        asyncio.run(resolved("https://hooks.example/", Known("1.1.1.1", "10.0.0.1"), private=False))


def authority(folder: Path, name: str) -> Path:
    """A certificate for a name, which is its own authority, with its key in the same file."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    private = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "pem").write_bytes(private + certificate.public_bytes(encoding))
    return folder / "pem"


@pytest.mark.parametrize("name", ["hooks.example", "other.example"])
def test_over_https_the_certificate_must_be_for_the_name_and_not_for_the_address(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    pem = authority(tmp_path, "hooks.example")
    monkeypatch.setattr(deliveries, "_certificates", lambda: ssl.create_default_context(cafile=str(pem)))
    with receiver(pem=pem) as there:
        port = urlsplit(there.url).port
        delivery = Delivery(uuid4(), uuid4(), f"https://{name}:{port}/", SECRET, "{}", 1)
        sending = deliveries.send(delivery, SECRET, Known("127.0.0.1"), private=True)
        if name == "hooks.example":
            assert asyncio.run(sending) == 204
        else:
            with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
                asyncio.run(sending)
    assert [message.headers["host"] for message in there.received] == ([f"{name}:{port}"] if name[0] == "h" else [])
