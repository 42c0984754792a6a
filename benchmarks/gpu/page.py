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
**This version was not run on a GPU.** Its tests run on simulated ones ([limitations](limitations.md)), which count
kernels, waits and bytes but show no time. `--collect` and `--wheels --dry` were run on a machine without a GPU, in an
empty virtual environment. Not known are therefore all times, among them the first product (goal: 2 s), exact q (50
times faster than an estimate to 1 % for N = 1000, and 5 times for N = 50 000), and a billion parameters from three
vectors (15 s and 32 GiB in float32, 45 s and 64 GiB in float64). A simulated GPU counts up to 37 and 62 bytes a
parameter for a transformer of the same shape and an eighth of the width, on as many times fewer tokens; for a billion
parameters that is 35 and 58 GiB. So the goal for memory will be missed by a tenth in float32, and met in float64.
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
