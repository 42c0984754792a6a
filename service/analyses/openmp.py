"""Makes OpenMP's idle threads sleep instead of spin; to be imported before torch, in the process that forks.

Threads that spin for their next piece of work take the cores from whoever else has work. On a machine that is
busy otherwise, an eigenvalue decomposition on two threads was seen to take 4 s instead of 0.02 s. OpenMP reads
its variables once, when it is loaded, so this can't wait until a child runs.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
