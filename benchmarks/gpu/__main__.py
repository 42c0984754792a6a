"""Check and measure a GPU: one line a finding, the most important first; exits with 1 if a target is missed.

./scripts/gpu [--minutes 8] [--only PART …] [--dry] [--write]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib import import_module

import page
from findings import Finding

PARTS = {
    "environment": "Machine",
    "start": "Start inside the sandbox",
    "correctness": "Numbers of the CPU",
    "served": "Service",
    "products": "Products and moments",
    "billion": "A billion parameters",
}
"""Parts in the order of their importance, with their titles."""
SHARES = {"environment": 0.06, "start": 0.16, "correctness": 0.2, "served": 0.18, "products": 0.24, "billion": 0.16}
"""Share of the time that each part may take; what one leaves, the next ones have."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="scripts/gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8.0, help="time for all parts")
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--dry", action="store_true", help="on a CPU with small sizes, whose numbers mean nothing")
    parser.add_argument("--write", action="store_true", help="write docs/gpu.md; needs all parts on a GPU")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.part:
        return _run_part(given.part, dry=given.dry)
    if given.write and (given.only or given.dry):
        parser.error("the page contains all parts of a run on a GPU: --write stands alone")
    sections = run(given.only or list(PARTS), minutes=given.minutes, dry=given.dry)
    missed = [each for found in sections.values() for each in found if each.met is False]
    print(f"\n{len(missed)} of the targets missed" if missed else "\nall targets met")
    if given.write:
        page.PAGE.write_text(page.render(sections), encoding="utf-8")
    return int(bool(missed))


def run(parts: Sequence[str], *, minutes: float, dry: bool) -> dict[str, list[Finding]]:
    """Run parts, each in a process of its own, and print what they find; return it by title."""
    started, left = time.monotonic(), sum(SHARES[part] for part in parts)
    sections: dict[str, list[Finding]] = {}
    for part in parts:
        remaining = 60 * minutes - (time.monotonic() - started)
        seconds = remaining * SHARES[part] / left
        left -= SHARES[part]
        print(f"\n{PARTS[part]}", flush=True)
        found = sections[PARTS[part]] = []
        for finding in _found_apart(part, seconds, dry=dry):
            print(finding, flush=True)
            found.append(finding)
    return sections


def _found_apart(part: str, seconds: float, *, dry: bool) -> Iterator[Finding]:
    """Yield what a part finds in its own process group, which ends with it; a finding says if it did not end well."""
    command = [sys.executable, os.path.dirname(os.path.abspath(__file__)), "--part", part, *(["--dry"] if dry else [])]
    late = threading.Event()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        clock = threading.Timer(max(seconds, 1.0), lambda: (late.set(), _end_group(process.pid)))
        clock.start()
        try:
            for line in process.stdout or ():
                with suppress(ValueError, TypeError):  # what a library prints
                    yield Finding(**json.loads(line))
            code = process.wait()
        finally:
            clock.cancel()
            _end_group(process.pid)
    if late.is_set():
        yield Finding(f"the part {part}", f"was stopped after {seconds:.0f} s", "ends in time", False)
    elif code:
        yield Finding(f"the part {part}", f"ended with code {code}; see above", "ends by itself", False)


def _end_group(process: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)


def _run_part(part: str, *, dry: bool) -> int:
    for finding in import_module(part).findings(import_module("machine").Machine(dry=dry)):
        print(json.dumps(asdict(finding)), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
