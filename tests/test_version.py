"""The version comes from tags, wherever packages are built."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PRETEND = "SETUPTOOLS_SCM_PRETEND_VERSION"
LATER = r"1\.2\.4\.dev1\+g[0-9a-f]+"


def git(folder: Path, *arguments: str) -> None:
    identity = {
        f"GIT_{who}_{what}": "tests@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
    }
    environment = {**os.environ, **identity, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    subprocess.run(["git", "-C", str(folder), *arguments], env=environment, check=True, capture_output=True)


def version(folder: Path, pretended: str | None = None) -> str:
    """The version that a build in this folder gives its packages."""
    environment = {name: value for name, value in os.environ.items() if name != PRETEND}
    if pretended is not None:
        environment[PRETEND] = pretended
    run = [sys.executable, "-m", "hatchling", "version"]
    return subprocess.run(run, cwd=folder, env=environment, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """The files that say how packages are built, without Git, as a builder of images gets them."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", ".git_archival.txt", ".gitattributes"):
        shutil.copy(ROOT / name, folder)
    for package in ("wsb", "wsb_engine", "service"):
        (folder / package).mkdir()
        (folder / package / "__init__.py").touch()
    return folder


@pytest.fixture
def checkout(plain: Path) -> Path:
    git(plain, "init", "--quiet")
    git(plain, "add", "--all")
    git(plain, "commit", "--quiet", "--message", "first")
    return plain


def test_a_tagged_commit_has_the_version_of_its_tag_whatever_other_tags_it_has(checkout: Path) -> None:
    for tag in ("v1.2.3", "v1", "before-4"):
        git(checkout, "tag", tag)
    assert version(checkout) == "1.2.3"


def test_a_later_commit_is_before_the_next_version_and_names_itself(checkout: Path) -> None:
    git(checkout, "tag", "v1.2.3")
    git(checkout, "commit", "--quiet", "--allow-empty", "--message", "second")
    assert re.fullmatch(LATER, version(checkout))


@pytest.mark.slow
def test_a_clone_without_tags_names_its_commit(checkout: Path) -> None:
    assert re.fullmatch(r"0\.0\.1\.dev1\+g[0-9a-f]+", version(checkout))


@pytest.mark.slow
def test_an_archive_by_git_has_the_version_of_its_commit(checkout: Path, tmp_path: Path) -> None:
    git(checkout, "tag", "v1.2.3")
    git(checkout, "tag", "v1")
    git(checkout, "archive", "--output", str(tmp_path / "it.tar"), "HEAD")
    with tarfile.open(tmp_path / "it.tar") as archive:
        archive.extractall(tmp_path / "archive", filter="data")
    assert version(tmp_path / "archive") == "1.2.3"


@pytest.mark.slow
def test_a_source_distribution_keeps_its_version(checkout: Path, tmp_path: Path) -> None:
    git(checkout, "tag", "v1.2.3")
    git(checkout, "commit", "--quiet", "--allow-empty", "--message", "second")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path / "made")]
    subprocess.run(build, cwd=checkout, check=True, capture_output=True)
    [made] = (tmp_path / "made").iterdir()
    with tarfile.open(made) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    [source] = (tmp_path / "source").iterdir()
    assert re.fullmatch(LATER, version(source))


@pytest.mark.slow
@pytest.mark.parametrize(("pretended", "expected"), [("2.0.0", "2.0.0"), ("", "0.0.0"), (None, "0.0.0")])
def test_without_git_the_version_is_the_one_that_is_given(plain: Path, pretended: str | None, expected: str) -> None:
    assert version(plain, pretended) == expected


@pytest.mark.slow
def test_the_program_says_the_version_that_is_installed_or_none(tmp_path: Path) -> None:
    shutil.copy(ROOT / "wsb_engine" / "version.py", tmp_path / "found.py")
    information = tmp_path / "wsb_sharpness-4.5.6.dist-info"
    program = "import sys; sys.path.insert(0, sys.argv[1]); import found; print(found.__version__)"
    run = [sys.executable, "-I", "-S", "-c", program, str(tmp_path)]
    assert subprocess.run(run, check=True, capture_output=True, text=True).stdout.strip() == "0.0.0"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.4\nName: wsb-sharpness\nVersion: 4.5.6\n")
    assert subprocess.run(run, check=True, capture_output=True, text=True).stdout.strip() == "4.5.6"
