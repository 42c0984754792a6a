"""API keys: creating them, hashing them, and finding the tenant of one."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

_PREFIX = "wsb_"
_KEY_BYTES = 32
_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,64}")
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class ApiKey:
    """A key as the server stores it."""

    tenant: str
    sha256: str


def new_key() -> str:
    """Return a new key: a prefix that secret scanners recognise, then 256 random bits."""
    return _PREFIX + secrets.token_urlsafe(_KEY_BYTES)


def hash_key(key: str) -> str:
    """Return the hash that is stored in place of a key.

    One round of SHA-256 is enough: slow, salted hashes protect secrets that can be guessed, which 256 random bits
    can't be, and each request pays for the hash.
    """
    return hashlib.sha256(key.encode()).hexdigest()


def is_tenant_name(name: str) -> bool:
    return _NAME.fullmatch(name) is not None


def parse_keys(text: str) -> tuple[ApiKey, ...]:
    """Parse ``name:hash,name:hash``; a name may occur several times, while its key is being replaced.

    Raises:
        ValueError: if an entry is malformed; the message gives its position, but not its text, which may be a key.
    """
    keys: dict[str, ApiKey] = {}
    for number, entry in enumerate(text.split(","), start=1):
        name, colon, sha256 = entry.strip().partition(":")
        if not (colon and is_tenant_name(name) and _HASH.fullmatch(sha256.lower())):
            raise ValueError(
                f"entry {number} is not NAME:HASH, with a name of letters, digits, '_', '.' and '-' and a SHA-256 in"
                " hexadecimal; `wsb keys new NAME` prints one"
            )
        key = ApiKey(name, sha256.lower())
        if keys.setdefault(key.sha256, key) != key:
            raise ValueError(f"entry {number} has the key of another name; each key must belong to one name")
    return tuple(keys.values())


def tenant_of(keys: Sequence[ApiKey], key: str) -> str | None:
    """Return the tenant of a key, if any; compares all entries, in time that doesn't depend on where they differ."""
    sha256, tenant = hash_key(key), None
    for known in keys:
        if hmac.compare_digest(sha256, known.sha256):
            tenant = known.tenant
    return tenant
