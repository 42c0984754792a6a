"""A client of a service on loopback."""

from __future__ import annotations

import ssl
from typing import Any

import httpx


def connect(url: str, **options: Any) -> httpx.Client:
    """Return a client without the certificates of authorities, which take longer to read than most tests run."""
    return httpx.Client(base_url=url, verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), **options)
