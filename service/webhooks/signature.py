"""Signatures of Standard Webhooks: HMAC-SHA256 of ``id.timestamp.payload``."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac

PREFIX = "whsec_"
LEAST_BYTES, MOST_BYTES = 24, 64
"""Sizes of secrets that the specification allows."""


def decoded(secret: str) -> bytes:
    """Return the key of a secret.

    Raises:
        ValueError: if it is not ``whsec_`` and 24 to 64 bytes in base64.
    """
    try:
        key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except binascii.Error:
        key = b""
    if not secret.startswith(PREFIX) or not LEAST_BYTES <= len(key) <= MOST_BYTES:
        raise ValueError(f"A secret is {PREFIX} and {LEAST_BYTES} to {MOST_BYTES} random bytes in base64")
    return key


def headers(secret: str, message: str, timestamp: int, payload: bytes) -> dict[str, str]:
    """Return the headers of a message.

    Args:
        secret: Secret of the webhook.
        message: Identifier of the message, the same at every attempt.
        timestamp: Time of the attempt in seconds since 1970.
        payload: Body of the message.
    """
    signed = f"{message}.{timestamp}.".encode() + payload
    signature = base64.b64encode(hmac.digest(decoded(secret), signed, hashlib.sha256)).decode()
    return {"webhook-id": message, "webhook-timestamp": str(timestamp), "webhook-signature": f"v1,{signature}"}
