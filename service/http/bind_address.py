"""Checks that a service without API keys listens on loopback addresses only."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence

from service.keys import ApiKey


class UnsafeBindAddressError(Exception):
    """The address can be reached from other machines, and there are no API keys."""


def check_bind_address(host: str, keys: Sequence[ApiKey], *, allow_anonymous: bool) -> None:
    """Check that a service without keys can be reached from this machine only.

    Raises:
        UnsafeBindAddressError: if it can be reached from elsewhere; the message says what to set.
        OSError: if the host name can't be resolved.
    """
    if keys or allow_anonymous or _is_loopback(host):
        return
    raise UnsafeBindAddressError(
        f"{host or 'an empty host'} can be reached from other machines, and no API keys are set: anyone who reaches it"
        " could use the service and see what others send. Create a key with `wsb keys new NAME` and set WSB_API_KEYS"
        " to the entry that it prints, or listen on 127.0.0.1. Behind a proxy that authenticates, set"
        " WSB_ALLOW_ANONYMOUS=true."
    )


def _is_loopback(host: str) -> bool:
    if not host:
        return False  # listens on every address
    addresses = {str(info[4][0]) for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    return all(ipaddress.ip_address(address).is_loopback for address in addresses)
