"""What the settings make of the sandbox: require, TorchScript, memory."""

from __future__ import annotations

import asyncio
import io
import os
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from support.command import wsb, wsb_here
from support.pt2 import exported
from support.sandbox import background
from support.service import StartService, npz_batch, onnx_mlp

from service.child import entry
from service.child.entry import ENTRY, MODEL_FILE, TORCHSCRIPT_NEEDS, torchscript_accepted
from service.child.protections import REQUIRED, active_protections
from service.cli import evaluate
from service.sandbox import Job, Outcome, Zygote
from service.settings import Settings


def _archive() -> bytes:
    """Return a TorchScript archive by the names of its members, without code."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in ("m/data.pkl", "m/constants.pkl"):
            archive.writestr(name, b"")
    return buffer.getvalue()


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    (tmp_path / "model").write_bytes(onnx_mlp())
    (tmp_path / "batch").write_bytes(npz_batch())
    return str(tmp_path / "model"), str(tmp_path / "batch")


@pytest.fixture
def exposed(tmp_path: Path) -> dict[str, str]:
    """Variables by which job folders lie among libraries: every job may read those, and so what is beside its own."""
    folder = tmp_path / "libraries"
    folder.mkdir()
    return {"LD_LIBRARY_PATH": str(folder), "TMPDIR": str(folder), "WSB_DATA_DIR": str(folder / "data")}


def gate(folder: Path, policy: str) -> Outcome:
    (folder / MODEL_FILE).write_bytes(_archive())
    request = {"options": {}, "torchscript": policy, "max_model_bytes": 1 << 30}

    job, shared = Job(folder=folder, entry=ENTRY, request=request, seconds=60), background()
    outcome: Outcome = shared.call(shared.engine.run(job)).result()
    return outcome


def test_this_host_gives_all_that_can_be_required(tmp_path: Path) -> None:
    async def main() -> list[str]:
        async with Zygote() as zygote:
            return await active_protections(Settings(_env_file=None), zygote, tmp_path, device="cpu")

    missing = set(REQUIRED) - set(asyncio.run(main()))

    if missing and os.environ.get("CI") != "true":
        pytest.skip(f"this host has no {', '.join(sorted(missing))}")
    assert missing == set()


@pytest.mark.slow  # as every analysis of a service does
def test_an_analysis_runs_where_all_that_is_required_is_there(files: tuple[str, str]) -> None:
    result = wsb("analyze", *files, WSB_SANDBOX="require")

    if "sandbox_insufficient" in result.stderr and os.environ.get("CI") != "true":
        pytest.skip(result.stderr)
    assert result.returncode == 0, result.stderr


def test_an_analysis_does_not_run_with_less_than_is_required(
    files: tuple[str, str], exposed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "PRELOAD_ONCE", ())  # a child is refused before it needs any of them
    monkeypatch.setattr(tempfile, "tempdir", exposed["TMPDIR"])  # which this process has read before
    result = wsb_here("analyze", *files, own_sandbox=True, WSB_SANDBOX="require", **exposed)

    assert result.returncode == 3
    assert "landlock" in result.stderr
    assert "[sandbox_insufficient]" in result.stderr


def test_a_child_runs_with_less_where_nothing_is_required(
    tmp_path: Path, exposed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in exposed.items():
        monkeypatch.setenv(name, value)

    async def main() -> list[str]:
        async with Zygote() as zygote:
            return await active_protections(Settings(_env_file=None), zygote, tmp_path / "libraries", device="cpu")

    assert "landlock" not in asyncio.run(main())


@pytest.mark.slow  # as the child above does
def test_an_analysis_runs_with_less_where_nothing_is_required(files: tuple[str, str], exposed: dict[str, str]) -> None:
    assert wsb("analyze", *files, **exposed).returncode == 0


def test_a_worker_refuses_to_start_with_less_than_is_required(
    database_url: str, exposed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entry, "PRELOAD", ())  # a worker refuses before it needs any of them
    variables = {"WSB_DATABASE_URL": database_url, "WSB_LOG_LEVEL": "error", **exposed}
    result = wsb_here("worker", WSB_SANDBOX="require", **variables)

    assert result.returncode == 2
    assert result.stderr.startswith("This host lacks required protections: landlock.")
    assert "Traceback" not in result.stderr


def test_serve_refuses_to_start_with_less_than_is_required(exposed: dict[str, str]) -> None:
    result = wsb_here("serve", "--port", "0", WSB_SANDBOX="require", **exposed)

    assert result.returncode == 2
    assert "[sandbox_insufficient]" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("policy", "active", "accepted"),
    [
        ("always", set(), True),
        ("never", TORCHSCRIPT_NEEDS, False),
        ("auto", TORCHSCRIPT_NEEDS, True),
        ("auto", TORCHSCRIPT_NEEDS - {"landlock"}, False),
        ("auto", TORCHSCRIPT_NEEDS - {"seccomp"}, False),
    ],
)
def test_torchscript_is_accepted_by_policy_and_protections(policy: str, active: set[str], accepted: bool) -> None:
    assert torchscript_accepted(policy, active) is accepted


def test_an_archive_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    outcome = gate(tmp_path, "never")

    assert outcome.error is not None
    assert (outcome.status, outcome.error.code) == ("failed", "torchscript_refused")
    assert "WSB_TORCHSCRIPT" in outcome.error.advice


def test_an_archive_comes_to_be_parsed_where_the_policy_says_so(tmp_path: Path) -> None:
    outcome = gate(tmp_path, "always")

    assert outcome.error is not None
    assert outcome.error.code == "model_invalid"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_analysed_in_the_sandbox(files: tuple[str, str], tmp_path: Path) -> None:
    layers = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
    torch.jit.save(torch.jit.script(layers.double()), tmp_path / "model.pt")

    result = wsb_here("analyze", str(tmp_path / "model.pt"), files[1], WSB_TORCHSCRIPT="always")

    assert result.returncode == 0, result.stderr
    assert "from torchscript" in result.stdout


@pytest.mark.slow
def test_a_pytorch_2_archive_is_analysed_in_the_sandbox_whatever_the_policy_on_torchscript(
    files: tuple[str, str], tmp_path: Path
) -> None:
    layers = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
    (tmp_path / "model.pt2").write_bytes(exported(layers.double(), torch.zeros(2, 4).double()))

    result = wsb_here("analyze", str(tmp_path / "model.pt2"), files[1], WSB_TORCHSCRIPT="never")

    assert result.returncode == 0, result.stderr
    assert "from pt2" in result.stdout


def test_capabilities_list_torchscript_where_it_is_accepted(start_service: StartService) -> None:
    offers = {
        policy: start_service(torchscript=policy).client.get("/v1/capabilities").json()["formats"]["models"]
        for policy in ("always", "never")
    }

    assert offers == {"always": ["onnx", "pt2", "torchscript"], "never": ["onnx", "pt2"]}


def test_capabilities_do_not_promise_torchscript_without_a_worker(start_service: StartService) -> None:
    capabilities = start_service(worker=False).client.get("/v1/capabilities").json()

    assert capabilities["formats"]["models"] == ["onnx", "pt2"]


def test_an_analysis_over_its_memory_is_out_of_memory(tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(onnx_mlp((1000, 8, 3)))
    x, y = np.zeros((100_000, 1000), dtype=np.float32), np.zeros(100_000, dtype=np.int64)
    np.savez_compressed(tmp_path / "batch.npz", x=x, y=y)

    files = (str(tmp_path / "model"), str(tmp_path / "batch.npz"))
    result = wsb_here("analyze", *files, WSB_JOB_MEMORY_BYTES=str(256 << 20))

    assert result.returncode == 3
    assert "[out_of_memory]" in result.stderr
