"""Keeps the secrets of webhooks from whoever reads the database, if the operator gives a key that is not in it.

A secret is as long as its pad at most, and each pad (HMAC-SHA512 of the webhook's identifier under the key) seals only
one secret: without the key, what is stored says nothing about it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from uuid import UUID

from pydantic import SecretStr

from service.webhooks.signature import PREFIX, decoded

_MARK = "sealed:"


class SealedError(Exception):
    """A secret was sealed with a key that is not here."""

    def __init__(self) -> None:
        super().__init__("The secret is sealed: set WSB_WEBHOOKS_KEY as it was when the webhook was registered.")


def sealed(secret: str, key: SecretStr | None, webhook: UUID) -> str:
    """Return what to store of a secret: without a key, the secret itself."""
    if key is None:
        return secret
    return _MARK + base64.b64encode(_padded(decoded(secret), key, webhook)).decode()


def opened(stored: str, key: SecretStr | None, webhook: UUID) -> str:
    """Return the secret.

    Raises:
        SealedError: if it is sealed and there is no key. Another key than it was sealed with gives another secret.
    """
    if not stored.startswith(_MARK):
        return stored
    if key is None:
        raise SealedError
    content = base64.b64decode(stored.removeprefix(_MARK))
    return PREFIX + base64.b64encode(_padded(content, key, webhook)).decode()


def _padded(content: bytes, key: SecretStr, webhook: UUID) -> bytes:
    pad = hmac.digest(key.get_secret_value().encode(), b"wsb webhook " + webhook.bytes, hashlib.sha512)
    return bytes(one ^ other for one, other in zip(content, pad, strict=False))
