"""The command `wsb` as a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def wsb(*arguments: str, cwd: Path | None = None, **more: str) -> subprocess.CompletedProcess[str]:
    """Runs it with these arguments and these additions to the environment, in a folder."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "COLUMNS": "200",
        "NO_COLOR": "1",
        "GITHUB_STEP_SUMMARY": "",  # where these tests are themselves a step, its summary is not for this
        **more,
    }
    run = [sys.executable, "-m", "service.cli.commands", *arguments]
    return subprocess.run(run, env=environment, capture_output=True, text=True, timeout=120, check=False, cwd=cwd)
