"""scripts/gpu: its parts on a CPU with small sizes, how it ends, and the page that it writes."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from support.forms import full

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks" / "gpu"
MODULES = tuple(path.stem for path in FOLDER.glob("[a-z]*.py"))


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """The modules by name; they find each other as in a run."""
    monkeypatch.syspath_prepend(str(FOLDER))
    before = {name: sys.modules.pop(name, None) for name in MODULES}
    names = ("findings", "page")
    yield {name: importlib.import_module(name) for name in names} | {"main": _loaded(FOLDER / "__main__.py")}
    for name, module in before.items():
        sys.modules.pop(name, None)
        if module is not None:
            sys.modules[name] = module


def _loaded(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_check", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    command = [ROOT / "scripts" / "gpu", "--dry", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_part_prints_one_line_a_finding_and_ends_with_0_if_no_target_is_missed() -> None:
    ended = run("--only", "environment")
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert "Machine" in lines
    assert any("torch" in line for line in lines)
    assert lines[-1] == "all targets met"


def test_a_part_that_does_not_end_in_time_is_stopped_and_counts_as_missed() -> None:
    ended = run("--only", "environment", "--minutes", "0.001")
    assert ended.returncode == 1
    assert "was stopped" in ended.stdout


@pytest.mark.slow
def test_a_part_that_breaks_counts_as_missed(check: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    (finding,) = check["main"]._found_apart("environment", 60.0, dry=True)
    assert finding.met is False
    assert "code 1" in finding.measured


def test_the_page_of_a_run_begins_with_what_was_missed(check: dict[str, ModuleType]) -> None:
    Finding = check["findings"].Finding
    found = {"Machine": [Finding("GPUs", "1")], "Service": [Finding("ready", "no", "it is", False)]}
    text = check["page"].render(found)
    assert text.index("## Missed") < text.index("| ready |") < text.index("## Machine")


def test_the_page_is_that_of_a_run_or_says_that_there_was_none(check: dict[str, ModuleType]) -> None:
    text = check["page"].PAGE.read_text(encoding="utf-8")
    assert text.startswith(check["page"].HEAD)
    assert "## Missed" in text or text == check["page"].render(None)


@pytest.mark.parametrize("part", ["correctness", "products", full("billion")])
@pytest.mark.usefixtures("check")
def test_a_part_finds_nothing_missed_on_a_cpu(part: str) -> None:
    machine = importlib.import_module("machine").Machine(dry=True)
    found = list(importlib.import_module(part).findings(machine))
    assert found
    assert [finding for finding in found if finding.met is False] == []


@pytest.mark.slow
@pytest.mark.parametrize("parts", [("start", "correctness", "products", "billion"), ("environment", "served")])
def test_every_part_goes_through_on_a_cpu(parts: tuple[str, ...]) -> None:
    ended = run("--minutes", "20", "--only", *parts)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.count("MISSED") == 0
