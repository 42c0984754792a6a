"""Exports as people make them, in a short form: each way of exporting and each size of the example batch a few times.

``scripts/zoo`` observes all of them and writes the tables of docs/formats.md.
"""

from __future__ import annotations

import importlib.util
import os
from types import ModuleType

import pytest

if importlib.util.find_spec("transformers") is None and not os.environ.get("CI"):
    pytest.skip(
        "transformers is not installed: pip install --no-deps -r requirements-models.lock", allow_module_level=True
    )

from zoo.cell import HOLDS, WRONG

pytestmark = pytest.mark.filterwarnings("ignore")

SHORT = [
    ("BERT, sdpa", "torch.onnx", 1),
    ("ViT, eager", "torch.onnx, dynamo=False", 8),
    ("BERT, sdpa", "torch.jit.trace", 2),
    ("Llama, sdpa", "torch.export, dynamic batch", 2),
]


@pytest.fixture(scope="module")
def record() -> ModuleType:
    """Imported by the one process that runs these tests: transformers takes seconds."""
    from zoo import record

    return record


@pytest.mark.parametrize(("family", "exporter", "samples"), SHORT)
def test_an_export_is_read_as_its_eager_module(family: str, exporter: str, samples: int) -> None:
    from zoo import networks

    cell = networks.observe(family, exporter, samples)
    assert cell.outcome == HOLDS, cell.note


def test_every_cell_was_observed(record: ModuleType) -> None:
    observed = record.read()
    assert observed.keys() == set(record.CELLS)
    assert [key for key, cell in observed.items() if cell.outcome == WRONG] == []


def test_the_tables_show_what_was_observed(record: ModuleType) -> None:
    observed = record.read()
    assert record.tables(observed) in record.DOCUMENT.read_text(encoding="utf-8")
