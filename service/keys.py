"""API keys: creating them, hashing them, and what each one allows."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Literal, get_args

KeyScope = Literal["submit", "read", "admin"]
"""``submit``: upload, request and cancel analyses. ``read``: everything that changes nothing. ``admin``: delete, have
results sent or shown to others (webhooks, badges), and read the metrics, which count for all tenants."""
SCOPES: frozenset[KeyScope] = frozenset(get_args(KeyScope))

_PREFIX = "wsb_"
_KEY_BYTES = 32
_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,64}")
_HASH = re.compile(r"[0-9a-f]{64}")
_WEIGHT = re.compile(r"[0-9]{1,3}(\.[0-9]{1,4})?")
_LEAST_WEIGHT = 0.01


@dataclass(frozen=True)
class ApiKey:
    """A key as the server stores it."""

    tenant: str
    sha256: str
    scopes: frozenset[KeyScope] = SCOPES
    expires: date | None = None
    """Last day (UTC) on which it is accepted; None if it does not expire."""

    @property
    def identifier(self) -> str:
        """First digits of the hash: they name the key in logs."""
        return self.sha256[:12]

    @property
    def has_expired(self) -> bool:
        return self.expires is not None and datetime.now(UTC).date() > self.expires


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


def entry(key: ApiKey) -> str:
    """Return the entry of a key in the setting, as ``parse_keys`` reads it."""
    scopes = "" if key.scopes == SCOPES else "+".join(sorted(key.scopes))
    expires = "" if key.expires is None else key.expires.isoformat()
    return ":".join((key.tenant, key.sha256, scopes, expires)).rstrip(":")


def parse_keys(text: str) -> tuple[ApiKey, ...]:
    """Parse ``name:hash[:scopes[:date]],…``; a name may occur several times, while its key is being replaced.

    Scopes are joined by ``+``; an empty list means all of them. The date, as 2027-01-31, is the last day of the key.

    Raises:
        ValueError: if an entry is malformed; the message gives its position, but not its text, which may be a key.
    """
    keys: dict[str, ApiKey] = {}
    for number, entry in enumerate(text.split(","), start=1):
        try:
            key = _parsed(*entry.strip().split(":"))
        except (TypeError, ValueError):
            raise ValueError(
                f"entry {number} is not NAME:HASH, NAME:HASH:SCOPES or NAME:HASH:SCOPES:DATE, with a name of letters,"
                " digits, '_', '.' and '-', a SHA-256 in hexadecimal, scopes such as submit+read, and a date such as"
                " 2027-01-31; `wsb keys new NAME` prints one"
            ) from None
        if keys.setdefault(key.sha256, key) != key:
            raise ValueError(f"entry {number} has the key of another name; each key must belong to one name")
    return tuple(keys.values())


def parse_scopes(text: str) -> frozenset[KeyScope]:
    """Parse scopes joined by ``+``; none stands for all.

    Raises:
        ValueError: if one is unknown.
    """
    named = set(text.lower().split("+")) if text else set(SCOPES)
    chosen = frozenset(scope for scope in SCOPES if scope in named)
    if len(chosen) < len(named):
        raise ValueError(f"scopes are {', '.join(get_args(KeyScope))}, joined by +")
    return chosen


def parse_weights(text: str) -> dict[str, float]:
    """Parse ``name:weight,…``: the weights of tenants, from 0.01 to 100.

    Raises:
        ValueError: if an entry is malformed; the message gives its position.
    """
    weights: dict[str, float] = {}
    for number, entry in enumerate(text.split(","), start=1):
        name, _, weight = entry.strip().partition(":")
        if not is_tenant_name(name) or name in weights or not _WEIGHT.fullmatch(weight):
            raise ValueError(f"entry {number} is not NAME:WEIGHT, with a unique name and a weight such as 2 or 0.5")
        weights[name] = float(weight)
        if not _LEAST_WEIGHT <= weights[name] <= 1 / _LEAST_WEIGHT:
            raise ValueError(f"entry {number}: weights are from {_LEAST_WEIGHT:g} to {1 / _LEAST_WEIGHT:g}")
    return weights


def find_key(keys: Sequence[ApiKey], key: str) -> ApiKey | None:
    """Find a key by its text; compares all entries, in time that doesn't depend on where they differ."""
    sha256, found = hash_key(key), None
    for known in keys:
        if hmac.compare_digest(sha256, known.sha256):
            found = known
    return found


def _parsed(name: str, sha256: str, scopes: str = "", expires: str = "") -> ApiKey:
    """Parse the parts of an entry.

    Raises:
        ValueError: if one is malformed.
    """
    if not is_tenant_name(name) or not _HASH.fullmatch(sha256.lower()):
        raise ValueError("no name and hash")
    return ApiKey(name, sha256.lower(), parse_scopes(scopes), date.fromisoformat(expires) if expires else None)
