"""Where webhooks may lead: a name is resolved once, and the connection goes to the address that was checked.

Otherwise a client could have the service send requests into the operator's own network (server-side request forgery).
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from urllib.parse import urlsplit

from service.kit.resolver import Resolver

_NAT64 = IPv6Network("64:ff9b::/96")
_PORTS = {"https": 443, "http": 80}
MOST_CHARACTERS = 2000


class UnusableUrlError(ValueError):
    """A URL to which nothing is sent; the message says why."""


@dataclass(frozen=True)
class Destination:
    """A URL whose name has been resolved."""

    url: str
    """With the address in place of the name."""
    host: str
    """Value of Host."""
    name: str
    """Name for which a certificate must be."""


async def resolved(url: str, resolver: Resolver, *, private: bool) -> Destination:
    """Resolve the name in a URL and check where it leads.

    Args:
        url: URL of the webhook.
        resolver: Resolver of its name.
        private: True to allow ``http:`` and addresses that are not public.

    Raises:
        UnusableUrlError: if nothing may be sent there, or the name is unknown or not resolved in time.
    """
    scheme, name, port = _checked(url, private=private)
    try:
        addresses = await resolver.addresses(name, port)
    except TimeoutError as error:
        raise UnusableUrlError(f"The name {name} could not be resolved in time.") from error
    except OSError as error:
        raise UnusableUrlError(f"The name {name} can't be resolved.") from error
    # All of them: which one is taken must not depend on their order.
    if not addresses or not (private or all(map(is_public, addresses))):
        raise UnusableUrlError(f"{name} leads to an address that is not public.")
    parts, address = urlsplit(url), addresses[0]
    literal = f"[{address}]" if isinstance(address, IPv6Address) else str(address)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Destination(f"{scheme}://{literal}:{port}{path}", parts.netloc, name)


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether an address belongs to the public internet, and so does an IPv4 address that it contains."""
    if isinstance(address, IPv6Address):
        inner = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
        if address in _NAT64:
            inner.append(IPv4Address(int(address) & 0xFFFFFFFF))
        if address.is_site_local or not all(each is None or is_public(each) for each in inner):
            return False
        if address.ipv4_mapped is not None or address in _NAT64:
            return True
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


def _checked(url: str, *, private: bool) -> tuple[str, str, int]:
    """Return scheme, name and port of a URL."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UnusableUrlError("This is not a URL.") from error
    if parts.scheme not in (_PORTS if private else ("https",)):
        raise UnusableUrlError("The URL must begin with https://.")
    if not parts.hostname or "@" in parts.netloc or len(url) > MOST_CHARACTERS or not url.isascii() or " " in url:
        raise UnusableUrlError("The URL must have a host, no user, and at most 2000 visible ASCII characters.")
    return parts.scheme, parts.hostname, _PORTS[parts.scheme] if port is None else port
