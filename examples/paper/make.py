"""Reproduce the figures and numbers of the page beside this script, README.md.

python examples/paper/make.py [--only bound,flatness,edge,outliers,sampling] [--short] [--data digits] [--out FOLDER]

Takes a few minutes. The data is Fashion-MNIST of Debian's package dataset-fashion-mnist, if that is installed, else the
digits of scikit-learn; nothing is downloaded. The same seed, data and versions give the same page, except for the times
in it. Requires matplotlib and scikit-learn.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import bound
import edge
import flatness
import outliers
import page
import sampling
import torch
from setting import FASHION_MNIST, Setting, digits, fashion_mnist

PARTS: dict[str, Callable[[Setting], page.Result]] = {
    "bound": bound.run,
    "flatness": flatness.run,
    "edge": edge.run,
    "outliers": outliers.run,
    "sampling": sampling.run,
}
SHORT = Path("build/paper")


def main(arguments: Sequence[str] | None = None) -> int:
    given = _arguments(arguments)
    if given.data == "fashion-mnist" and not given.folder.is_dir():
        print(f"{given.folder} is not there: apt install dataset-fashion-mnist, or give --data digits", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    found = digits(given.seed) if given.data == "digits" else fashion_mnist(given.folder)
    setting = Setting(*found, seed=given.seed, short=given.short)
    print(f"{setting.data}; seed {setting.seed}; the page is {given.out / 'README.md'}", flush=True)
    for name in given.only:
        started = time.monotonic()
        result = PARTS[name](setting)
        source = f"Data: {setting.data}. Seed: {setting.seed}."
        if given.short:
            source += " Made with `--short`, which is too little to conclude anything from."
        page.write(given.out, name, page.Result(f"{result.numbers}\n\n{source}", result.claims, result.figures))
        agreeing = sum(claim.agrees for claim in result.claims)
        print(
            f"{name}: {agreeing} of {len(result.claims)} claims agree, {time.monotonic() - started:.0f} s", flush=True
        )
    return 0


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    def parts(text: str) -> list[str]:
        unknown = [name for name in text.split(",") if name not in PARTS]
        if unknown:
            raise argparse.ArgumentTypeError(f"there is no part {', '.join(unknown)}; parts are {', '.join(PARTS)}")
        return [name for name in PARTS if name in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", type=parts, default=list(PARTS), help="parts to run, separated by commas")
    parser.add_argument("--short", action="store_true", help=f"try each part in seconds; the page goes to {SHORT}")
    parser.add_argument("--data", choices=("fashion-mnist", "digits"), help="by default Fashion-MNIST if installed")
    parser.add_argument("--folder", type=Path, default=FASHION_MNIST, help="folder of Fashion-MNIST")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder of the page and its figures; by default that of this script")
    given = parser.parse_args(arguments)
    given.data = given.data or ("fashion-mnist" if given.folder.is_dir() else "digits")
    given.out = given.out or (SHORT if given.short else page.PAGE.parent)
    return given


if __name__ == "__main__":
    raise SystemExit(main())
