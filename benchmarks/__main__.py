"""Run every comparison, print the table row by row, and exit with 1 if a target is missed.

    ./scripts/bench [--only GROUP …] [--write]

Each group runs in a separate process, one after the other; nothing else should run meanwhile. `--write` writes the
table and its plots to docs/.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence

import page
import psutil
from harness import Row, end_with_what_was_started, machine, rows_apart

GROUPS = {
    "moments": "Exact moments",
    "products": "Hessian products",
    "spectra": "Eigenvalues",
    "rounding": "What rounding costs",
    "gates": "Gates that stop when decided",
    "http_overhead": "Service: one call",
    "load": "Service: many calls",
    "uploads": "Service: large files",
    "starts": "Start-up",
    "growth": "How cost grows",
}
MINUTES = 15.0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=GROUPS, metavar="GROUP", help=", ".join(GROUPS))
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md and its plots; needs all groups")
    given = parser.parse_args(arguments)
    end_with_what_was_started()
    if given.only and given.write:
        parser.error("the page contains all groups: --write cannot be combined with --only")
    print(machine(), flush=True)
    sections = []
    started = time.monotonic()
    for group in given.only or GROUPS:
        busy = psutil.cpu_percent(interval=1)
        print(f"\n{GROUPS[group]} (other programs use {busy:.0f} % of the machine)", flush=True)
        sections.append(page.Section(GROUPS[group], list(printed(rows_apart(group))), busy))
    sections.append(page.Section("This run", list(printed(whole(time.monotonic() - started)))))
    if given.write:
        page.write(sections)
    missed = [row for section in sections for row in section.rows if row.met is False]
    print(f"\n{len(missed)} of the targets missed" if missed else "\nall targets met")
    return int(bool(missed))


def printed(rows: Iterator[Row]) -> Iterator[Row]:
    for row in rows:
        print(row, flush=True)
        yield row


def whole(seconds: float) -> Iterator[Row]:
    minutes = seconds / 60
    yield Row("time of the run", f"{minutes:.1f} min", f"at most {MINUTES:g} min", minutes <= MINUTES)


if __name__ == "__main__":
    raise SystemExit(main())
