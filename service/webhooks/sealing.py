"""Keeps the secrets of webhooks from whoever reads the database, if the operator gives keys that are not in it.

A secret is sealed with Fernet (AES-128 in CBC mode, and HMAC-SHA256), under a key that HKDF (RFC 5869) derives from the
operator's key and the webhook's identifier: what is stored with one webhook does not open with another.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING
from uuid import UUID

from pydantic import SecretStr

from service.webhooks.signature import PREFIX

# Loading it takes a tenth of a second, and only installations with keys need it.
if TYPE_CHECKING:
    from cryptography.fernet import Fernet

_PURPOSE = b"wsb webhook "
_KEY_BYTES = 32


class SealedError(Exception):
    """A secret was sealed with a key that is not here."""

    def __init__(self) -> None:
        super().__init__(
            "The secret is sealed with a key that is not in WSB_WEBHOOKS_KEY: add that key, or register the webhook"
            " again."
        )


def sealed(secret: str, keys: Sequence[SecretStr], webhook: UUID) -> str:
    """Return what to store of a secret: sealed with the first key, or without any, the secret itself."""
    return _fernet(keys[0], webhook).encrypt(secret.encode()).decode() if keys else secret


def opened(stored: str, keys: Sequence[SecretStr], webhook: UUID) -> str:
    """Return the secret, which any of the keys opens.

    Raises:
        SealedError: if it is sealed with none of them, or changed or stored with another webhook since.
    """
    if stored.startswith(PREFIX):
        return stored
    if not keys:
        raise SealedError
    from cryptography.fernet import InvalidToken, MultiFernet

    try:
        return MultiFernet([_fernet(key, webhook) for key in keys]).decrypt(stored).decode()
    except InvalidToken as error:
        raise SealedError from error


def resealed(stored: str, keys: Sequence[SecretStr], webhook: UUID) -> str | None:
    """Return the secret sealed with the first key; None if that is how it is stored.

    Raises:
        SealedError: if it is sealed with none of the keys.
    """
    if not stored.startswith(PREFIX):
        with suppress(SealedError):
            opened(stored, keys[:1], webhook)
            return None
    return sealed(opened(stored, keys, webhook), keys, webhook)


def _fernet(key: SecretStr, webhook: UUID) -> Fernet:
    from cryptography.fernet import Fernet
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    derived = HKDF(SHA256(), length=_KEY_BYTES, salt=None, info=_PURPOSE + webhook.bytes)
    return Fernet(base64.urlsafe_b64encode(derived.derive(key.get_secret_value().encode())))
