"""`import wsb` is `import wsb_engine` under the command's name, with the client of the service."""

from __future__ import annotations

import pydoc
import subprocess
import sys

import pytest

import wsb
import wsb_engine

CLIENT = {"AsyncClient", "Client", "ClientError"}


def test_the_facade_gives_what_the_engine_gives_and_the_client() -> None:
    assert dir(wsb) == wsb.__all__
    assert set(wsb.__all__) == {*wsb_engine.__all__, *CLIENT}
    assert all(getattr(wsb, name) is getattr(wsb_engine, name) for name in wsb_engine.__all__)
    assert {getattr(wsb, name).__module__.rpartition(".")[0] for name in CLIENT} == {"service.client"}


def test_neither_it_nor_the_client_loads_torch_or_the_server() -> None:
    program = """
import sys, wsb
wsb.Client, wsb.AsyncClient, wsb.ClientError
print([name for name in ("torch", "numpy", "httpx", "fastapi", "sqlalchemy") if name in sys.modules])
"""
    run = [sys.executable, "-c", program]
    assert subprocess.run(run, capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    for module in (wsb, wsb_engine):
        with pytest.raises(AttributeError, match="nonsense"):
            module.nonsense  # noqa: B018


def test_its_help_shows_the_public_names() -> None:
    text = pydoc.plain(pydoc.render_doc(wsb_engine))
    assert all(name in text for name in wsb_engine.__all__ if name != "__version__")
