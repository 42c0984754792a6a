"""The command where nothing of Linux is there: what macOS lacks, and what Windows lacks."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.forms import full
from support.sandbox import FAKE_ENTRY
from support.service import npz_batch, onnx_mlp

from service.sandbox import Job
from service.sandbox.unconfined import run_unconfined

HIDDEN = """
import asyncio, builtins, ctypes, os, signal, sys, types

MODULES = ("fcntl", "grp", "pwd", "resource", "termios")
NAMES = {
    "os": ("O_DIRECTORY", "O_NOFOLLOW", "O_PATH", "WEXITSTATUS", "WIFEXITED", "WIFSIGNALED", "WTERMSIG", "fork",
           "geteuid", "getppid", "getuid", "killpg", "memfd_create", "pipe2", "sched_getaffinity", "setresuid",
           "setsid", "sysconf", "uname", "wait4", "waitid"),
    "signal": ("SIGCHLD", "SIGKILL", "SIGXCPU", "pthread_sigmask"),
}

class Shown(types.ModuleType):
    def __init__(self, module):
        super().__init__(module.__name__)
        self._module = module

    def __getattr__(self, name):
        if name in NAMES.get(self.__name__, ()):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(self._module, name)

SHOWN = {"os": Shown(os), "signal": Shown(signal), "sys": Shown(sys)}
SHOWN["sys"].platform = "PLATFORM"
imported, library = builtins.__import__, ctypes.CDLL.__init__

def guarded(name, globals=None, *rest, **named):
    ours = (globals or {}).get("__package__") or ""  # what others import is theirs to know
    if ours.partition(".")[0] in ("service", "wsb", "wsb_engine"):
        if name in MODULES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        if name in SHOWN:
            return SHOWN[name]
    return imported(name, globals, *rest, **named)

def load(self, name, *rest, **named):
    if name is None:
        raise TypeError("LoadLibrary() argument 1 must be str, not None")
    library(self, name, *rest, **named)

def refuse(event, arguments):
    if event in ("open", "os.listdir", "os.scandir") and str(arguments[0]).startswith(("/proc", "/sys", "/dev/shm")):
        raise FileNotFoundError(arguments[0])

def refuse_handler(*_):
    raise NotImplementedError

builtins.__import__ = guarded
ctypes.CDLL.__init__ = load
sys.addaudithook(refuse)
asyncio.SelectorEventLoop.add_signal_handler = refuse_handler
"""


@pytest.fixture(params=[full("darwin"), "win32"])
def files(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[str, str]:
    (tmp_path / "m.onnx").write_bytes(onnx_mlp())
    (tmp_path / "b.npz").write_bytes(npz_batch())
    (tmp_path / "sitecustomize.py").write_text(HIDDEN.replace("PLATFORM", request.param))
    return str(tmp_path / "m.onnx"), str(tmp_path / "b.npz")


def wsb(folder: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(folder), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path, "WSB_DATA_DIR": str(folder / "data"), **settings}
    run = [sys.executable, "-m", "service.cli.commands", *arguments]
    return subprocess.run(run, env=environment, capture_output=True, text=True, check=False, cwd=folder)


def assert_unconfined(stdout: str, folder: Path) -> None:
    """The command has printed a report and written it, which says that no sandbox confined the analysis."""
    assert "λ_max" in stdout
    assert json.loads((folder / "r.json").read_text())["engine"]["sandbox"] is None
    assert '<th scope="row">Sandbox</th><td>none</td>' in (folder / "r.html").read_text()


@pytest.mark.slow  # as the one below does
def test_an_analysis_runs_unconfined_and_the_report_says_so(tmp_path: Path, files: tuple[str, str]) -> None:
    outputs = ("--json", str(tmp_path / "r.json"), "--html", str(tmp_path / "r.html"))
    result = wsb(tmp_path, "analyze", *files, *outputs)
    assert result.returncode == 0, result.stderr
    assert_unconfined(result.stdout, tmp_path)


@pytest.mark.slow
def test_a_report_is_held_against_a_policy(tmp_path: Path, files: tuple[str, str]) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text('[[rule]]\nmetric = "enclosure.lambda_max.upper"\nop = "<="\nlimit = 1e-9\n')
    outputs = ("--json", str(tmp_path / "r.json"), "--html", str(tmp_path / "r.html"))
    result = wsb(tmp_path, "check", *files, "--policy", str(policy), *outputs)
    assert result.returncode == 1, result.stderr + result.stdout
    assert_unconfined(result.stdout, tmp_path)


@pytest.mark.slow
def test_an_analysis_is_stopped_when_its_time_is_up(tmp_path: Path, files: tuple[str, str]) -> None:
    # A process that is ended by a signal is on a system that has it.
    hidden = (tmp_path / "sitecustomize.py").read_text().replace('"SIGKILL", "SIGXCPU", ', "")
    (tmp_path / "sitecustomize.py").write_text(hidden)
    result = wsb(tmp_path, "analyze", *files, "--timeout", "0.01")
    assert result.returncode == 3
    assert "[time_limit_exceeded]" in result.stderr


def test_an_error_in_an_ordinary_process_is_one_of_the_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(FAKE_ENTRY), *sys.path])
    job = Job(folder=tmp_path, entry="fake_entry:run", request={"options": {"output": "fail"}}, seconds=60)
    outcome = asyncio.run(run_unconfined(job))
    assert outcome.error is not None
    assert (outcome.status, outcome.error.code) == ("failed", "unsupported_operator")


@pytest.mark.slow  # in the short form, the one above sees an error of an input
def test_a_file_that_is_no_model_is_refused_by_its_code(tmp_path: Path, files: tuple[str, str]) -> None:
    result = wsb(tmp_path, "analyze", files[1], files[1])
    assert result.returncode == 2
    assert "[" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_required_protections_are_refused_in_one_sentence(tmp_path: Path, files: tuple[str, str]) -> None:
    result = wsb(tmp_path, "analyze", *files, WSB_SANDBOX="require")
    assert result.returncode == 3
    [_message] = [line for line in result.stderr.splitlines() if line.endswith("[sandbox_insufficient]")]
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("command", [("serve",), full(("worker", "--device", "cpu"))])
def test_the_service_says_that_it_needs_linux(tmp_path: Path, files: tuple[str, str], command: tuple[str, ...]) -> None:
    result = wsb(tmp_path, *command)
    assert result.returncode == 2
    assert result.stderr == "The service needs Linux; wsb analyze and wsb check also run here. [linux_required]\n"
