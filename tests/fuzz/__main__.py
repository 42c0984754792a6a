"""Change real files and give them to each reader in the child as it is deployed, for as long as is asked.

    ./scripts/fuzz [--minutes 10] [--only KIND …] [--seed TEXT]

Exits with 1 if a file ended otherwise than with a report or an error with a code. Such files are kept in
tests/fuzz/found: the tests read them from then on.
"""

from __future__ import annotations

import argparse
import time

from fuzz.corpus import BATCHES, MODELS
from fuzz.deployed import attack


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="for each reader")
    parser.add_argument("--only", nargs="*", default=[*MODELS, *BATCHES], metavar="KIND")
    parser.add_argument("--seed", default=time.strftime("%Y-%m-%d"))
    asked = parser.parse_args()
    found = 0
    for kind in asked.only:
        tried, lines = attack(kind, seconds=60 * asked.minutes, seed=asked.seed, keep=True)
        print(f"{kind}: {tried} files tried, {len(lines)} found", *lines, sep="\n  ", flush=True)
        found += len(lines)
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
