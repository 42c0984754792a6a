"""An object store on loopback that can be taken away and brought back, with what it held."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from uuid import uuid4

import boto3
from moto.server import ThreadedMotoServer


@dataclass
class Bucket:
    """An empty bucket and the environment that leads to it."""

    name: str
    port: int

    def __post_init__(self) -> None:
        self._server: ThreadedMotoServer | None = None
        self.start()
        self.client = boto3.client(
            "s3",
            endpoint_url=self.environment["AWS_ENDPOINT_URL"],
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )
        self.client.create_bucket(Bucket=self.name)

    @property
    def url(self) -> str:
        return f"s3://{self.name}/some/prefix"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ALLOW_HTTP": "true",
        }

    def start(self) -> None:
        with redirect_stdout(StringIO()):
            self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
            self._server.start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop()
            self._server = None

    def names(self) -> list[str]:
        """Names of the blobs, without the prefix."""
        found = self.client.list_objects_v2(Bucket=self.name, Prefix="some/prefix/").get("Contents", [])
        names = [entry["Key"].removeprefix("some/prefix/") for entry in found]
        return [name for name in names if name != "probe"]

    def overwrite(self, name: str, content: bytes) -> None:
        self.client.put_object(Bucket=self.name, Key=f"some/prefix/{name}", Body=content)


@contextmanager
def bucket() -> Iterator[Bucket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = int(listener.getsockname()[1])
    # What the server holds belongs to this process, so that a name is used once.
    found = Bucket(f"bucket-{uuid4().hex}", port)
    try:
        yield found
    finally:
        found.client.close()
        found.stop()
