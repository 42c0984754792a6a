"""``wsb_engine.callbacks`` under the short name, for ``import wsb.callbacks`` and ``from wsb.callbacks import …``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from wsb_engine import callbacks

if TYPE_CHECKING:
    from wsb_engine.callbacks import *  # noqa: F403

sys.modules[__name__] = callbacks
