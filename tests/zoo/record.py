"""What was last observed of every cell, and the tables of docs/formats.md that show it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from zoo.cell import HOLDS, Cell
from zoo.exporters import EXAMPLES
from zoo.families import FAMILIES
from zoo.keras import MODELS, WAYS
from zoo.scores import CLASSES, CLASSIFIERS, FORMS

OBSERVED = Path(__file__).parent / "observed.json"
DOCUMENT = Path(__file__).parents[2] / "docs" / "formats.md"
BEGIN, END = "<!-- scripts/zoo writes this -->", "<!-- until here -->"
Record = dict[tuple[str, str, str], Cell]
"""(row, column, variant) → cell."""

NETWORKS = [
    (family, exporter, str(size)) for family in FAMILIES for exporter, sizes in EXAMPLES.items() for size in sizes
]
SCORES = [(name, form, str(classes)) for name in CLASSIFIERS for form in FORMS for classes in CLASSES]
KERAS = [(row, way, "1") for row in MODELS for way in WAYS]
CELLS = (*NETWORKS, *KERAS, *SCORES)


def read() -> Record:
    if not OBSERVED.exists():
        return {}
    return {(row, column, variant): Cell(**cell) for row, column, variant, cell in json.loads(OBSERVED.read_text())}


def write(record: Record) -> None:
    order = {key: place for place, key in enumerate(CELLS)}
    keys = sorted((key for key in record if key in order), key=lambda key: order[key])
    lines = ",\n".join(json.dumps([*key, asdict(record[key])], ensure_ascii=False) for key in keys)
    OBSERVED.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    before, rest = DOCUMENT.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    DOCUMENT.write_text(f"{before}{BEGIN}\n\n{tables(record)}\n{END}{after}", encoding="utf-8")


def tables(record: Record) -> str:
    """All tables, and below them what their numbers stand for."""
    notes: dict[str, int] = {}
    networks = _table("model", list(FAMILIES), list(EXAMPLES), record, notes)
    keras = _table("Keras 3", list(MODELS), list(WAYS), record, notes)
    scores = _table("scikit-learn, by skl2onnx", list(CLASSIFIERS), list(FORMS), record, notes)
    listed = "\n".join(f"{number}. {note}" for note, number in notes.items())
    return f"{networks}\n{keras}\n{scores}\n{listed}\n"


def _table(title: str, rows: Sequence[str], columns: Sequence[str], record: Record, notes: dict[str, int]) -> str:
    lines = [[title, "parameters", *columns], ["---"] * (len(columns) + 2)]
    for row in rows:
        cells = {key: cell for key, cell in record.items() if key[0] == row and key[1] in columns}
        if not cells:
            continue
        counts = sorted({cell.parameters for cell in cells.values() if cell.outcome == HOLDS and cell.parameters})
        found = [_shown({key[2]: cell for key, cell in cells.items() if key[1] == column}, notes) for column in columns]
        lines.append([row, ", ".join(f"{count:,}" for count in counts), *found])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _shown(cells: dict[str, Cell], notes: dict[str, int]) -> str:
    """One entry for all variants, or one for each outcome with the variants that it is of."""
    if not cells:
        return "not tried"
    groups: dict[str, list[str]] = {}
    for variant, cell in cells.items():
        text = "✓" if cell.outcome == HOLDS else cell.outcome
        if cell.note:
            text += f" [{notes.setdefault(_plain(cell.note), len(notes) + 1)}]"
        groups.setdefault(text, []).append(variant)
    if len(groups) == 1:
        return next(iter(groups))
    return "; ".join(f"{', '.join(variants)}: {text}" for text, variants in groups.items())


def _plain(note: str) -> str:
    return note.replace("|", "\\|").replace("<", "&lt;")


def worse(before: Record, now: Record) -> Iterable[str]:
    """What got worse, a line a cell."""
    for key, cell in now.items():
        if key in before and cell.worse_than(before[key]):
            yield f"{', '.join(key)}: {before[key].outcome} before, now {cell.outcome}: {cell.note}"
