"""Dockerfile and .dockerignore: what goes into the image, and as whom it runs."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
ALLOWED = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}


def test_only_what_the_image_is_made_of_is_sent_to_the_builder() -> None:
    copied = {name for line in re.findall(r"^COPY (.*)$", DOCKERFILE, re.MULTILINE) for name in line.split()[:-1]}
    bound = set(re.findall(r"type=bind,source=([^,]+)", DOCKERFILE))
    assert (ROOT / ".dockerignore").read_text().splitlines()[0] == "*"
    assert copied | bound == ALLOWED


def test_everything_that_is_sent_exists() -> None:
    assert [name for name in ALLOWED if not (ROOT / name).exists()] == []


def test_the_last_stage_does_not_run_as_root() -> None:
    last = DOCKERFILE.split("\nFROM ")[-1]
    assert re.findall(r"^USER (.*)$", last, re.MULTILINE) == ["10001:10001"]


def test_what_makes_packages_is_in_the_part_of_pyproject_that_makes_a_new_image() -> None:
    first, _, rest = (ROOT / "pyproject.toml").read_text().partition("\n[tool.ruff]\n")
    tables = r"^\[(build-system|project[^\]]*|tool\.hatch[^\]]*)\]$"
    assert {"build-system", "project"} <= set(re.findall(tables, first, re.MULTILINE))
    assert re.findall(tables, rest, re.MULTILINE) == []


def test_the_version_that_is_given_is_that_of_the_packages_and_of_the_label() -> None:
    *_, build, last = DOCKERFILE.split("\nFROM ")
    for stage in (build, last):
        assert re.findall(r"^ARG VERSION=(.*)$", stage, re.MULTILINE) == ["0.0.0"]
    assert 'SETUPTOOLS_SCM_PRETEND_VERSION="$VERSION"' in build
    assert 'org.opencontainers.image.version="$VERSION"' in last
