"""What a CI system says of a run in the environment: labels for analyses on a server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

MAX_VALUE = 256
"""Most characters of a label's value."""


class System(NamedTuple):
    """A CI system: its variables, of which the first that is set counts."""

    marker: str
    """Set in every run of this system."""
    commit: tuple[str, ...]
    branch: tuple[str, ...]
    run: tuple[str, ...]


SYSTEMS = {
    "GitHub": System("GITHUB_ACTIONS", ("GITHUB_SHA",), ("GITHUB_HEAD_REF", "GITHUB_REF_NAME"), ("GITHUB_RUN_ID",)),
    "GitLab": System(
        "GITLAB_CI",
        ("CI_COMMIT_SHA",),
        ("CI_MERGE_REQUEST_SOURCE_BRANCH_NAME", "CI_COMMIT_REF_NAME"),
        ("CI_PIPELINE_ID",),
    ),
    "Jenkins": System(
        "JENKINS_URL", ("GIT_COMMIT",), ("CHANGE_BRANCH", "BRANCH_NAME", "GIT_BRANCH"), ("BUILD_TAG", "BUILD_NUMBER")
    ),
}


def labels(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the labels commit, branch and run, as far as the environment says them; empty outside CI."""
    system = next((system for system in SYSTEMS.values() if environment.get(system.marker)), None)
    if system is None:
        return {}
    found = {}
    for label in ("commit", "branch", "run"):
        value = next(filter(None, (environment.get(variable) for variable in getattr(system, label))), "")
        if shown := "".join(filter(str.isprintable, value))[:MAX_VALUE]:
            found[label] = shown
    return found
