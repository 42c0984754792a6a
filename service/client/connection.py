"""What both clients need of httpx, which is imported only when a client is made."""

from __future__ import annotations

from contextlib import ExitStack
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from service.client.effects import LostError, Open, Reply, Send
from service.client.retries import Session

if TYPE_CHECKING:
    import httpx


def open_session(url: str, key: str | None, retry_seconds: float, busy_seconds: float | None) -> Session:
    """Return what all requests of a client share, after checking that httpx is installed.

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
    headers = {"Authorization": f"Bearer {text}"} if text else {}
    return Session(url.rstrip("/"), retry_seconds, retry_seconds if busy_seconds is None else busy_seconds, headers)


def request(session: Session, send: Send, stack: ExitStack) -> dict[str, Any]:
    """Return the arguments of httpx's ``request``.

    Args:
        session: Session of the client.
        send: What to send.
        stack: Closes the files of the request.
    """
    headers, body = {**session.headers, **send.headers}, dict[str, Any](content=send.content)
    if send.file is not None and send.file.data:
        body = {"files": send.file.opened(stack, send.progress)}
    elif send.file is not None:
        body = {"content": send.file.chunks(send.progress)}
        headers |= {"Content-Type": "application/octet-stream", "Content-Length": str(send.file.size)}
    return {"method": send.method, "url": session.url + send.path, "headers": headers, "timeout": send.seconds, **body}


def stream(session: Session, wanted: Open) -> dict[str, Any]:
    """Return the arguments of httpx's ``stream``."""
    headers = {**session.headers, **wanted.headers}
    return {"method": "GET", "url": session.url + wanted.path, "headers": headers, "timeout": wanted.seconds}


def lost(error: httpx.TransportError) -> LostError:
    return LostError(str(error) or type(error).__name__)


def reply(response: httpx.Response, body: bytes = b"") -> Reply:
    return Reply(response.status_code, {name.lower(): value for name, value in response.headers.items()}, body)
