"""Commands that are advised write files that are accepted, and no other commands are advised."""

from __future__ import annotations

import ast
import pathlib
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import skl2onnx
import sklearn.linear_model
import torch
from support.exports import share_operators

import wsb_engine as wsb
from wsb_engine.formats import commands

ROOT = Path(__file__).parents[3]
COMMANDS = {
    name: getattr(commands, name) for name in dir(commands) if name.startswith(("EXPORT_", "SAVE_", "CONVERT_"))
}
WORDS = re.compile("export|save|to_onnx")
"""One of which is in every call that is looked for: other files need no parsing."""
CALL = re.compile(r"(?:torch\.(?:onnx\.export|export\.save|jit\.save)|onnx\.save|onnx\.save_model|skl2onnx\.to_onnx)\(")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_writes_a_file_that_is_accepted(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    share_operators()
    X, y = np.random.default_rng(0).normal(size=(30, 4)), np.arange(30) % 3
    names = {
        "torch": torch,
        "onnx": onnx,
        "pathlib": pathlib,
        "skl2onnx": skl2onnx,
        "X": X,
        "model": torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3)).eval(),
        "example_inputs": (torch.zeros(2, 4),),
        "classifier": sklearn.linear_model.LogisticRegression().fit(X, y),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(COMMANDS[name], names)  # noqa: S102 - what users are told to type
    (written,) = (path for path in tmp_path.iterdir() if path.suffix in (".onnx", ".pt", ".pt2"))
    assert (tmp_path / "model.onnx.data").exists() == (name == "EXPORT_WITH_DATA")
    report = wsb.analyze(wsb.load_model(written), wsb.Batch(X.astype(np.float32), y))
    assert report.enclosure is not None
    assert not report.failed_checks


def texts() -> Iterator[tuple[Path, str]]:
    """Every document, and every string of the product that is no docstring."""
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        yield path, path.read_text()
    for package in ("wsb_engine", "service"):
        for path in sorted((ROOT / package).rglob("*.py")):
            if not WORDS.search(source := path.read_text()):
                continue
            tree = ast.parse(source)
            said = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
            for node in ast.walk(tree):
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in said:
                    yield path, node.value


def test_no_other_command_is_advised() -> None:
    # Documents are formatted with double quotes.
    found = [(path, text.replace('"', "'")[match.start() :]) for path, text in texts() for match in CALL.finditer(text)]
    unknown = [
        (str(path), text[:100])
        for path, text in found
        if not any(text.startswith(command[command.find(CALL.search(command)[0]) :]) for command in COMMANDS.values())  # type: ignore[index]
    ]
    assert not unknown
    assert {path.name for path, _ in found} >= {"commands.py"}
