"""Add a check run with the outcome of `wsb check` to the commit, by the GitHub CLI.

    python3 scripts/check_run.py FOLDER KEY CODE

FOLDER has verdict.json and comment.md of `wsb check`, if it came to a verdict; KEY distinguishes the steps of a
workflow; CODE is the exit code of `wsb check`. Reads GH_TOKEN and the variables of GitHub Actions; does nothing without
a token. Says why if it can't add the check run, and never fails: the outcome of a step is that of its check.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

WITHOUT_VERDICT = {2: "invalid input", 3: "could not be evaluated"}
NO_VERDICT = "There is no verdict: the log of the step says why."
GH_SECONDS = 60


def conclude(folder: Path, code: int) -> tuple[str, str, str]:
    """Return the conclusion, the title and the summary.

    What could not be evaluated has not passed: as a required check, `neutral` would let the change through.
    """
    try:
        outcome = json.loads((folder / "verdict.json").read_text(encoding="utf-8"))["outcome"]
        title, _, summary = (folder / "comment.md").read_text(encoding="utf-8").partition("\n")
    except FileNotFoundError:
        return "failure", f"Sharpness: {WITHOUT_VERDICT.get(code, 'ended early')}", NO_VERDICT
    passed = "neutral" if outcome == "warn" else "success"
    return passed if code == 0 else "failure", title.lstrip("# "), summary


def commit(variables: dict[str, str]) -> str:
    """Return the commit to mark: of a pull request the one that was pushed, not the merge that is tested."""
    event: dict[str, Any] = {}
    if variables.get("GITHUB_EVENT_PATH"):
        event = json.loads(Path(variables["GITHUB_EVENT_PATH"]).read_text(encoding="utf-8"))
    pull_request = event.get("pull_request")
    return str(pull_request["head"]["sha"]) if pull_request else variables["GITHUB_SHA"]


def check_run(folder: Path, key: str, code: int, variables: dict[str, str]) -> dict[str, Any]:
    """Return the request to GitHub."""
    conclusion, title, summary = conclude(folder, code)
    run = "{GITHUB_SERVER_URL}/{GITHUB_REPOSITORY}/actions/runs/{GITHUB_RUN_ID}".format_map(variables)
    return {
        "name": f"wsb check {key}",
        "head_sha": commit(variables),
        "status": "completed",
        "conclusion": conclusion,
        "details_url": run,
        "output": {"title": title, "summary": summary},
    }


def add(folder: Path, key: str, code: int, variables: dict[str, str]) -> str | None:
    """Add the check run; return why that failed."""
    try:
        content = json.dumps(check_run(folder, key, code, variables))
        command = ["gh", "api", "--silent", "--method", "POST"]
        command += [f"repos/{variables['GITHUB_REPOSITORY']}/check-runs", "--input", "-"]
        subprocess.run(command, input=content, text=True, check=True, timeout=GH_SECONDS)
    except FileNotFoundError:
        return "the GitHub CLI (gh) is not installed"
    except subprocess.CalledProcessError:
        return "it can't be added with this token; the job needs 'permissions: checks: write'"
    except subprocess.TimeoutExpired:
        return f"GitHub did not answer within {GH_SECONDS} seconds"
    except (KeyError, OSError, ValueError) as error:
        return f"the variables of GitHub Actions are incomplete ({type(error).__name__}: {error})"
    return None


def main() -> None:
    folder, key, code = sys.argv[1:]
    if not os.environ.get("GH_TOKEN"):
        return
    reason = add(Path(folder), key, int(code), dict(os.environ))
    if reason:
        print(f"::notice::No check run on the commit: {reason}.")


if __name__ == "__main__":
    main()
