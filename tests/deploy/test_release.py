"""The release: a workflow for GitHub that a person's CI can run, and what its scripts are pinned to."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PATH = ROOT / ".github" / "workflows" / "release.yml"
TEXT = PATH.read_text(encoding="utf-8")
WORKFLOW: dict[str, Any] = yaml.safe_load(TEXT)
STEPS = [step for job in WORKFLOW["jobs"].values() for step in job["steps"]]


def check(schema: str, path: Path, *more: str) -> subprocess.CompletedProcess[str]:
    if os.environ.get("CI") != "true":
        pytest.importorskip("check_jsonschema", reason="check-jsonschema is not installed")
    run = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, *more, str(path)]
    return subprocess.run(run, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("schema", "path", "more"),
    [
        ("vendor.github-workflows", ".github/workflows/release.yml", ()),
        ("vendor.github-workflows", "examples/ci/github-workflow.yml", ()),
        ("vendor.github-actions", "action.yml", ()),
        ("vendor.gitlab-ci", "examples/ci/gitlab-ci.yml", ("--data-transform", "gitlab-ci")),
    ],
)
def test_a_file_for_ci_is_valid_by_the_schema_of_its_host(schema: str, path: str, more: tuple[str, ...]) -> None:
    done = check(schema, ROOT / path, *more)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_misspelt_key_of_a_workflow_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "release.yml").write_text(TEXT.replace("timeout-minutes", "timeout-minute"))
    done = check("vendor.github-workflows", tmp_path / "release.yml")
    assert done.returncode == 1
    assert "timeout-minute" in done.stdout


def test_every_action_is_pinned_by_its_commit() -> None:
    used = re.findall(r"uses: (\S+)(.*)", TEXT)
    assert used
    assert [name for name, note in used if not re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", name) or "# v" not in note] == []


def test_nothing_is_put_into_a_command_but_by_variables() -> None:
    assert [step["run"] for step in STEPS if "${{" in step.get("run", "")] == []


def test_the_token_of_the_run_may_only_read() -> None:
    assert WORKFLOW["permissions"] == {"contents": "read"}
    assert [name for name, job in WORKFLOW["jobs"].items() if "permissions" in job] == []
    checkouts = [step for step in STEPS if step.get("uses", "").startswith("actions/checkout@")]
    assert [step["with"]["persist-credentials"] for step in checkouts] == [False, False]


def test_only_a_tag_of_a_repository_with_an_image_to_push_publishes_anything() -> None:
    [pushing] = [step for step in STEPS if "--push" in step.get("run", "")]
    assert pushing["if"] == "github.ref_type == 'tag' && vars.WSB_IMAGE != ''"
    assert [step for step in STEPS if "secrets." in str(step.get("env")) and step is not pushing] == []
    for flag in ("--sbom=true", "--provenance=mode=max"):
        assert flag in pushing["run"]


def test_an_image_gets_arguments_that_the_dockerfile_has() -> None:
    given = set(re.findall(r"--build-arg (\w+)=", TEXT))
    assert given == {"VERSION", "PIP_EXTRA_INDEX_URL"}
    assert given <= set(re.findall(r"^ARG (\w+)=", (ROOT / "Dockerfile").read_text(), re.MULTILINE))


@pytest.mark.parametrize(
    ("tag", "starts"), [("v1.2.3", True), ("v1.20.3rc1", True), ("v1", False), ("1.2.3", False), ("vx.1.2", False)]
)
def test_a_release_starts_with_tags_that_are_versions(tag: str, starts: bool) -> None:
    [pattern] = WORKFLOW[True]["push"]["tags"]  # YAML reads the key `on` as true
    # Of GitHub's patterns: a plus repeats what precedes it, and a star stands for anything.
    expression = pattern.replace(".", r"\.").replace("*", ".*")
    assert bool(re.fullmatch(expression, tag)) == starts


def test_what_builds_a_release_is_pinned_with_hashes_and_is_what_the_build_asks_for() -> None:
    lock = (ROOT / "requirements-release.lock").read_text()
    pins = dict(re.findall(r"^([\w-]+)==(\S+) \\$", lock, re.MULTILINE))
    assert len(re.findall(r"^[\w-]+==", lock, re.MULTILINE)) == len(pins)  # each goes on with its hashes
    developers = dict(
        line.split("==") for line in (ROOT / "requirements-dev.lock").read_text().splitlines() if "==" in line
    )
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    for name in (re.split(r"[<>=]", each)[0] for each in asked):
        assert pins[name] == developers[name]
    assert "cyclonedx-bom" in pins


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "old.whl").touch()
    done = subprocess.run([ROOT / "scripts" / "release", tmp_path], capture_output=True, text=True, check=False)
    assert (done.returncode, "is not empty" in done.stderr) == (2, True)
    assert [path.name for path in tmp_path.iterdir()] == ["old.whl"]
