"""The figures and the page of examples/paper."""

from __future__ import annotations

import gzip
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from support.examples import EXAMPLES

PAPER = EXAMPLES / "paper"
MODULES = ("make", "page", "setting", "bound", "edge", "flatness", "outliers", "sampling")
PARTS = ("bound", "flatness", "edge", "outliers", "sampling")
LARGEST_FIGURE = 100_000


def make(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    run = [sys.executable, str(PAPER / "make.py"), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        run, env=environment, cwd=folder, capture_output=True, text=True, timeout=600, check=False, encoding="utf-8"
    )


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """The modules of the script, which import each other by names that others have too."""
    monkeypatch.syspath_prepend(str(PAPER))
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield {name: importlib.import_module(name) for name in MODULES}
    for name in MODULES:
        sys.modules.pop(name, None)


# The page in the repository, which the script made in full, is held against its form as well.
@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page that the short form makes, at its own place."""
    folder = tmp_path_factory.mktemp("paper")
    result = make("--short", "--data", "digits", folder=folder)
    assert result.returncode == 0, result.stderr
    assert re.findall(r"^(\w+): \d+ of \d+ claims agree", result.stdout, re.MULTILINE) == list(PARTS)
    return folder / "build" / "paper"


def blocks(page: str) -> dict[str, str]:
    return dict(re.findall(r"<!-- (\w+ (?:numbers|claims)) -->\n(.*?)<!-- end -->\n", page, re.DOTALL))


def check(folder: Path) -> dict[str, str]:
    """Check the tables and figures of a page; return its blocks."""
    page = (folder / "README.md").read_text(encoding="utf-8")
    found = blocks(page)
    assert set(found) == {f"{part} {kind}" for part in PARTS for kind in ("numbers", "claims")}
    for block in found.values():
        rows = [line for line in block.splitlines() if line.startswith("|")]
        assert len(rows) >= 3
        assert len({line.count("|") for line in rows}) == 1
    for figure in re.findall(r"!\[.+\]\((.+)\)", page):
        content = (folder / figure).read_bytes()
        assert len(content) < LARGEST_FIGURE
        assert ElementTree.fromstring(content).tag == "{http://www.w3.org/2000/svg}svg"  # noqa: S314
    return found


@pytest.mark.slow
def test_the_short_form_fills_every_place_of_the_page_and_draws_every_figure(short: Path) -> None:
    found = check(short)
    assert all("Data: digits of scikit-learn, 8 × 8. Seed: 0." in found[f"{part} numbers"] for part in PARTS)
    assert all("`--short`" in found[f"{part} numbers"] for part in PARTS)


@pytest.mark.slow
def test_the_bound_holds_and_batches_are_biased_in_the_short_form_too(short: Path) -> None:
    found = blocks((short / "README.md").read_text(encoding="utf-8"))
    [bound] = [line for line in found["bound claims"].splitlines() if line.startswith("| λ_max is at most the bound |")]
    assert "in 12 of 12 networks" in bound
    assert bound.endswith("| agrees |")


@pytest.mark.slow
def test_the_same_seed_makes_the_same_part_and_leaves_the_others_as_they_are(short: Path, tmp_path: Path) -> None:
    result = make("--short", "--data", "digits", "--only", "outliers", "--out", ".", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    again, page = (blocks((folder / "README.md").read_text(encoding="utf-8")) for folder in (tmp_path, short))
    assert again["outliers numbers"] == page["outliers numbers"]
    assert again["outliers claims"] == page["outliers claims"]
    figure = "figures/outliers.svg"
    assert (tmp_path / figure).read_bytes() == (short / figure).read_bytes()
    committed = blocks((PAPER / "README.md").read_text(encoding="utf-8"))
    assert again["edge numbers"] == committed["edge numbers"]


def test_the_page_in_the_repository_was_made_in_full() -> None:
    found = check(PAPER)
    assert not any("`--short`" in block for block in found.values())
    assert len({re.findall(r"^Data: .*$", found[f"{part} numbers"], re.MULTILINE)[0] for part in PARTS}) == 1


def test_wrong_arguments_are_refused_with_advice(modules: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        modules["make"].main(["--only", "edges"])
    assert "there is no part edges; parts are bound, flatness, edge, outliers, sampling" in capsys.readouterr().err
    assert modules["make"].main(["--data", "fashion-mnist", "--folder", "nowhere"]) == 2
    assert "apt install dataset-fashion-mnist, or give --data digits" in capsys.readouterr().err


def test_a_page_without_a_place_for_a_part_is_refused(modules: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no place for 'edge numbers'"):
        modules["page"].between("<!-- bound numbers -->\n<!-- end -->\n", "edge numbers", "1")


def test_fashion_mnist_is_read_from_its_files_and_pooled(modules: dict[str, Any], tmp_path: Path) -> None:
    images = np.arange(3 * 784, dtype=np.uint32).astype(np.uint8).reshape(3, 28, 28)
    for name, content in (
        ("train-images-idx3-ubyte.gz", bytes(16) + images.tobytes()),
        ("train-labels-idx1-ubyte.gz", bytes(8) + bytes([7, 1, 9])),
    ):
        with gzip.open(tmp_path / name, "wb") as file:
            file.write(content)
    x, y = modules["setting"]._pooled(tmp_path, "train", 2)
    assert y.tolist() == [7, 1]
    corners = range(0, 28, 4)
    expected = [[image[r : r + 4, c : c + 4].mean() for r in corners for c in corners] for image in images[:2]]
    np.testing.assert_allclose(x.numpy(), expected, rtol=1e-15)


@pytest.mark.parametrize("cosine", [0.0, 0.6])
def test_samples_at_a_cosine_have_it_in_every_pair(modules: dict[str, Any], cosine: float) -> None:
    _, rows, _ = modules["setting"].digits()
    x, _ = modules["bound"]._at_cosine(rows, cosine)
    G = x @ x.T / x.shape[1]
    expected = cosine + (1 - cosine) * torch.eye(len(x), dtype=torch.float64)
    torch.testing.assert_close(G, expected, rtol=0, atol=1e-12)


def test_sam_steps_along_the_gradient_uphill_of_the_parameters(modules: dict[str, Any]) -> None:
    setting, flatness = modules["setting"], modules["flatness"]
    module = setting.perceptron(4, 3, 2, 0)
    batch = torch.eye(4, dtype=torch.float64), torch.tensor([0, 1, 0, 1])
    flat = torch.nn.utils.parameters_to_vector

    def gradient(at: torch.Tensor) -> torch.Tensor:
        other = setting.perceptron(4, 3, 2, 0)
        torch.nn.utils.vector_to_parameters(at, other.parameters())
        loss = torch.nn.functional.cross_entropy(other(batch[0]), batch[1])
        return flat(torch.autograd.grad(loss, list(other.parameters())))

    before = flat(module.parameters()).detach().clone()
    g = gradient(before)
    flatness._sharpness_aware(module, batch, torch.optim.SGD(module.parameters(), lr=0.5), 0.3)
    expected = before - 0.5 * gradient(before + 0.3 * g / g.norm())
    torch.testing.assert_close(flat(module.parameters()).detach(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("eigenvalues", "count"), [([9.0, 8, 7, 1, 0.9, 0.8, 0.7], 3), ([9.0, 1, 0.9, 0.8, -1], 1)])
def test_eigenvalues_before_the_widest_gap_stand_out(
    modules: dict[str, Any], eigenvalues: list[float], count: int
) -> None:
    assert modules["outliers"].Spectrum(3, 0, 1.0, eigenvalues).standing_out == count
