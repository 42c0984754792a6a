"""What both clients need of httpx, which is imported only when a client is made."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from service.client.effects import Reply, Send

if TYPE_CHECKING:
    import httpx


def authorization(key: str | None) -> dict[str, str]:
    """Return the headers of every request, after checking that httpx is installed.

    Raises:
        ModuleNotFoundError: if httpx is not installed; the message says what to install.
        ValueError: if the key contains what no key does; the message does not contain it.
    """
    if find_spec("httpx") is None:
        raise ModuleNotFoundError("The client needs httpx, which is not installed: pip install httpx.", name="httpx")
    # Checked here, because httpx would print the key in its error about an invalid header.
    text = (key or "").strip()
    if not (text.isascii() and text.isprintable()):
        raise ValueError("The API key contains characters that no key has.")
    return {"Authorization": f"Bearer {text}"} if text else {}


def headers(send: Send) -> dict[str, str]:
    """Return the headers of a request, with the length of a file that is its whole body."""
    found = dict(send.headers)
    if send.file is not None and not send.file.data:
        found |= {"Content-Type": "application/octet-stream", "Content-Length": str(send.file.size)}
    return found


def reply(response: httpx.Response, body: bytes = b"") -> Reply:
    return Reply(response.status_code, {name.lower(): value for name, value in response.headers.items()}, body)
