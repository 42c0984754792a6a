"""The examples in the docstrings of the public names, run as they stand in a folder with a model and its batch."""

from __future__ import annotations

import doctest
import io
from pathlib import Path

import pytest
from support.golden import Golden

import wsb_engine as wsb

FINDER = doctest.DocTestFinder(exclude_empty=True)
EXAMPLES = {
    found.name: found
    for name, public in [
        ("wsb_engine", wsb),
        *((name, getattr(wsb, name)) for name in wsb.__all__),
        *((f"callbacks.{name}", getattr(wsb.callbacks, name)) for name in ("LoopCallback", "measure")),
    ]
    for found in FINDER.find(public, name, globs={})
    if found.examples
}
WITHOUT = {
    *("__version__", "BatchError", "Eigenpairs", "ModelError", "OptionsError", "ParameterComparison", "ResourceError")
}
"""What another name's example shows."""


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_prints_what_it_says(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Golden("paper_three_layer_tanh")
    (tmp_path / "model.onnx").write_bytes(case.onnx())
    (tmp_path / "batch.npz").write_bytes(case.npz())
    monkeypatch.chdir(tmp_path)
    output = io.StringIO()
    results = doctest.DocTestRunner(verbose=False).run(EXAMPLES[name], out=output.write)
    assert results.failed == 0, output.getvalue()


def test_every_public_name_has_an_example() -> None:
    assert {name.split(".")[0] for name in EXAMPLES} == {"wsb_engine", *wsb.__all__} - WITHOUT
