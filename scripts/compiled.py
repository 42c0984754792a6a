"""Import every module of the packages once, so that Python keeps it and what it imports compiled.

    .venv/bin/python scripts/compiled.py

scripts/environment runs it beside the second half of an installation. What can't be imported by then is left out.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
for package in ("wsb_engine", "service"):
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
        with suppress(Exception):
            importlib.import_module(module.name)
