"""A receiver of webhooks on loopback."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # noqa: S105 - of the specification


@dataclass
class Message:
    headers: dict[str, str]
    """By names in lower case."""
    body: bytes


@dataclass
class Receiver:
    url: str = ""
    received: list[Message] = field(default_factory=list)
    answer: Callable[[int], tuple[int, dict[str, str]]] = lambda number: (204, {})
    """From the number of messages so far to the status and the headers of the response."""


@contextmanager
def receiver(port: int = 0, *, pem: Path | None = None) -> Iterator[Receiver]:
    """Runs until the end of the block; over https, if there is a file with a certificate and its key."""
    found = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            found.received.append(Message({name.lower(): value for name, value in self.headers.items()}, body))
            status, headers = found.answer(len(found.received))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    if pem is not None:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(pem)
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    found.url = f"http://localhost:{server.server_port}/hook?a=b"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
