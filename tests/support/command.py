"""The command `wsb` as a process, and in this one."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import chdir, nullcontext
from pathlib import Path
from unittest.mock import patch

from typer.testing import CliRunner

from service.cli.commands import app
from support.sandbox import shared

SHOWN = {
    "COLUMNS": "200",
    "NO_COLOR": "1",
    "GITHUB_STEP_SUMMARY": "",  # where these tests are themselves a step, its summary is not for this
}


def wsb(*arguments: str, cwd: Path | None = None, **more: str) -> subprocess.CompletedProcess[str]:
    """Runs it with these arguments and these additions to the environment, in a folder."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **SHOWN, **more}
    run = [sys.executable, "-m", "service.cli.commands", *arguments]
    return subprocess.run(run, env=environment, capture_output=True, text=True, timeout=120, check=False, cwd=cwd)


def wsb_here(
    *arguments: str, cwd: Path | None = None, own_sandbox: bool = False, **more: str
) -> subprocess.CompletedProcess[str]:
    """Run it likewise, but in this process: starting Python and torch takes seconds.

    An analysis runs in the sandbox that the tests of this process share, unless it is to have its own. An unexpected
    error is raised. Logging stays as it is: it belongs to the tests.
    """
    with (
        chdir(cwd or Path.cwd()),
        patch("service.logs.configure"),
        nullcontext() if own_sandbox else patch("service.cli.evaluate._sandbox", shared),
    ):
        result = CliRunner().invoke(app, arguments, env={**SHOWN, **more}, catch_exceptions=False)
    return subprocess.CompletedProcess(arguments, result.exit_code, result.stdout, result.stderr)
