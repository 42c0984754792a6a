"""`import wsb` is `import wsb_engine` under the command's name."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import wsb
import wsb_engine


def test_the_facade_gives_what_the_engine_gives() -> None:
    assert dir(wsb) == dir(wsb_engine) == wsb_engine.__all__
    assert all(getattr(wsb, name) is getattr(wsb_engine, name) for name in wsb.__all__)


def test_nothing_is_defined_in_it() -> None:
    defining = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
    assert not [node for node in ast.walk(ast.parse(Path(wsb.__file__).read_text())) if isinstance(node, defining)]


def test_importing_it_loads_no_torch() -> None:
    run = [sys.executable, "-c", "import sys, wsb\nprint('torch' in sys.modules)"]
    assert subprocess.run(run, capture_output=True, text=True, check=True).stdout == "False\n"


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    for module in (wsb, wsb_engine):
        with pytest.raises(AttributeError, match="nonsense"):
            module.nonsense  # noqa: B018


def test_its_help_shows_the_public_names() -> None:
    run = [sys.executable, "-c", "import wsb_engine\nhelp(wsb_engine)"]
    text = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    assert all(name in text for name in wsb_engine.__all__ if name != "__version__")
