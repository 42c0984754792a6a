"""Observe the cells of tests/zoo and write them down; see scripts/zoo."""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch
from zoo import networks, scores
from zoo.cell import WRONG, Cell, sentence
from zoo.record import NETWORKS, SCORES, Record, read, worse, write


def observe(keys: list[tuple[str, str, str]]) -> Record:
    """Observe cells in one process: all of one family, which share its right values, or all of scikit-learn."""
    torch.set_num_threads(1)
    found = {}
    for row, column, variant in keys:
        module = scores if row in scores.CLASSIFIERS else networks
        try:
            found[row, column, variant] = module.observe(row, column, int(variant))
        except Exception as error:  # of the engine, which may only refuse by a code
            found[row, column, variant] = Cell(WRONG, note=sentence(error))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="regular expression for “row, column, variant”")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--check", action="store_true", help="write nothing, only compare")
    given = parser.parse_args()
    chosen = [key for key in (*NETWORKS, *SCORES) if re.search(given.only, ", ".join(key))]
    groups: dict[str, list[tuple[str, str, str]]] = {}
    for key in chosen:
        groups.setdefault("" if key[0] in scores.CLASSIFIERS else key[0], []).append(key)
    before, now = read(), Record()
    with ProcessPoolExecutor(given.processes, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        started = time.monotonic()
        pending = [pool.submit(observe, keys) for keys in groups.values()]
        for done in as_completed(pending):
            now |= done.result()
            for key, cell in done.result().items():
                print(f"{', '.join(key)}: {cell.outcome}, {cell.parameters}. {cell.note}", flush=True)
            print(f"{len(now)} of {len(chosen)} after {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
            if not given.check:
                write(before | now)
    lost = list(worse(before, now))
    print("\n".join(lost), file=sys.stderr)
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
