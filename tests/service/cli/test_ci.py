"""Labels that a CI system's variables give, and those that replace them."""

from __future__ import annotations

import pytest
import typer

from service.cli import ci
from service.cli.running import about

GITHUB = {"GITHUB_ACTIONS": "true", "GITHUB_SHA": "c0ffee", "GITHUB_REF_NAME": "main", "GITHUB_RUN_ID": "17"}
GITLAB = {"GITLAB_CI": "true", "CI_COMMIT_SHA": "c0ffee", "CI_COMMIT_REF_NAME": "main", "CI_PIPELINE_ID": "17"}
JENKINS = {"JENKINS_URL": "http://ci", "GIT_COMMIT": "c0ffee", "BRANCH_NAME": "main", "BUILD_TAG": "jenkins-a-17"}
COMMON = {"commit": "c0ffee", "branch": "main", "run": "17"}


@pytest.mark.parametrize(
    ("environment", "labels"),
    [
        (GITHUB, COMMON),
        ({**GITHUB, "GITHUB_HEAD_REF": "topic"}, {**COMMON, "branch": "topic"}),
        ({**GITHUB, "GITHUB_HEAD_REF": ""}, COMMON),
        (GITLAB, COMMON),
        ({**GITLAB, "CI_MERGE_REQUEST_SOURCE_BRANCH_NAME": "topic"}, {**COMMON, "branch": "topic"}),
        (JENKINS, {**COMMON, "run": "jenkins-a-17"}),
        ({**JENKINS, "CHANGE_BRANCH": "topic", "BUILD_TAG": ""}, {"commit": "c0ffee", "branch": "topic"}),
        ({**JENKINS, "BUILD_TAG": "", "BUILD_NUMBER": "17"}, COMMON),
        ({"JENKINS_URL": "http://ci", "GIT_BRANCH": "origin/main"}, {"branch": "origin/main"}),
        ({"GITHUB_SHA": "c0ffee", "CI_COMMIT_SHA": "c0ffee", "GIT_COMMIT": "c0ffee"}, {}),
        ({**GITHUB, "GITHUB_REF_NAME": "a\x00\u202e" + "b" * 300}, {**COMMON, "branch": "a" + "b" * 255}),
    ],
)
def test_a_system_says_commit_branch_and_run(environment: dict[str, str], labels: dict[str, str]) -> None:
    assert ci.labels(environment) == labels


def test_labels_on_the_command_line_win(monkeypatch: pytest.MonkeyPatch) -> None:
    for system in ci.SYSTEMS.values():
        monkeypatch.delenv(system.marker, raising=False)
    for name, value in GITHUB.items():
        monkeypatch.setenv(name, value)
    told = about("nightly", ["run:mine", "team:vision:a", "draft"], "http://server")
    assert told == {
        "name": "nightly",
        "labels": {"commit": "c0ffee", "branch": "main", "run": "mine", "team": "vision:a", "draft": ""},
    }


@pytest.mark.parametrize(("name", "labels"), [("nightly", []), (None, ["run:a"])])
def test_without_a_server_there_is_nothing_to_name(name: str | None, labels: list[str]) -> None:
    with pytest.raises(typer.Exit):
        about(name, labels, None)
    assert about(None, [], None) == {}
