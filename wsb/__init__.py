"""The short name of ``wsb_engine``: the same names, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wsb_engine import __all__ as __all__
from wsb_engine import __dir__ as __dir__
from wsb_engine import __version__ as __version__

if TYPE_CHECKING:
    from wsb_engine import *  # noqa: F403
else:
    from wsb_engine import __getattr__ as __getattr__
