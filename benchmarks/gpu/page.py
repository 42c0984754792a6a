"""docs/gpu.md from what a run found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from findings import Finding

PAGE = Path(__file__).parents[2] / "docs" / "gpu.md"

HEAD = """# On a GPU

What `./scripts/gpu` found on one machine, the most important first.

On the machine it needs Python 3.11 or newer, a torch of 2.11 or newer that finds the GPU, this repository, and a folder
of wheels for what else the project needs. Collect them where there is a package index:

    PYTHON_VERSION=3.12 ./scripts/gpu --collect wheels      # there
    ./scripts/gpu --wheels wheels --minutes 8 --write       # on the machine with the GPU

It ends in time, with exit code 1 if a target was missed or a part did not end. Each part runs in a process that ends
with it, so a fault of the GPU in one spoils no other. `--only PART …` runs some parts, `--dry` all of them on a CPU
with small sizes, whose numbers mean nothing.
"""
NOT_RUN = """
**This version was not run on a GPU.** Its tests run on simulated ones ([limitations](limitations.md)).
"""


def render(sections: Mapping[str, Sequence[Finding]] | None) -> str:
    """Return the page; of None, that nothing was run."""
    if sections is None:
        return HEAD + NOT_RUN
    missed = [finding for found in sections.values() for finding in found if finding.met is False]
    parts = [HEAD, "\n## Missed\n\n" + (_table(missed) if missed else "No target was missed.\n")]
    parts += [f"\n## {title}\n\n{_table(found)}" for title, found in sections.items()]
    return "".join(parts)


def _table(found: Sequence[Finding]) -> str:
    mark = {True: "met", False: "**missed**", None: ""}
    lines = [f"| {each.name} | {each.measured} | {each.target} | {mark[each.met]} |\n" for each in found]
    return "| what | found | target | |\n|---|---|---|---|\n" + "".join(lines)
