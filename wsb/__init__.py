"""The short name of ``wsb_engine``: the same names, and the client of the service.

``Client`` and ``AsyncClient`` analyse on a server; their errors are ``ClientError``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import wsb_engine
from wsb_engine import __version__ as __version__

if TYPE_CHECKING:
    from service.client.asynchronous import AsyncClient as AsyncClient
    from service.client.blocking import Client as Client
    from service.client.errors import ClientError as ClientError
    from wsb_engine import *  # noqa: F403

_MODULES = {
    "AsyncClient": "service.client.asynchronous",
    "Client": "service.client.blocking",
    "ClientError": "service.client.errors",
}

__all__ = sorted([*wsb_engine.__all__, *_MODULES])

if not TYPE_CHECKING:  # type checkers would allow any name

    def __getattr__(name: str) -> Any:
        module = _MODULES.get(name)
        return getattr(wsb_engine, name) if module is None else getattr(importlib.import_module(module), name)


def __dir__() -> list[str]:
    return __all__
