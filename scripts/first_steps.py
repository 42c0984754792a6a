"""Take a new user's first steps by the README, and print how many seconds each command takes.

    python3 scripts/first_steps.py [--reuse]

The commands are those of the section "First steps" of README.md, as printed there: clone, demo, a model of one's own, a
gate. They run one after another in an empty folder; the address of the repository stands for this checkout, of which
its last commit is cloned. With --reuse the clone gets the packages of the Python that runs this, instead of installing
them. Exit code 1: a command failed or said nothing of λ_max, a step is not in the README, or there are too many.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ADDRESS = "https://github.com/OWNER/wsb"
STEPS = {
    "clone": r"git clone ",
    "demo": r"\./scripts/demo\b",
    "export": r"torch\.onnx\.export\(",
    "analysis": r"wsb analyze model\.onnx batch\.npz",
    "gate": r"wsb check model\.onnx batch\.npz --policy ",
}
"""What a command of each step looks like, in the order of the steps."""
MAX_COMMANDS = 6
SECONDS = 3600
"""How long one command may take: the demo installs everything."""


def commands(readme: str) -> list[str]:
    """Return the commands of the section, each with the text that it is given (``<<'END'``)."""
    found = re.search(r"^## First steps\n(.*?)(?=^## |\Z)", readme, re.DOTALL | re.MULTILINE)
    blocks = re.findall(r"^```sh\n(.*?)^```", found[1] if found else "", re.DOTALL | re.MULTILINE)
    split = re.compile(r"^\S[^\n]*<<'(\w+)'[^\n]*\n.*?^\1$|^\S(?:[^\n]*\\\n)*[^\n]*$", re.DOTALL | re.MULTILINE)
    return [match[0] for block in blocks for match in split.finditer(block)]


def missing(listed: list[str]) -> list[str]:
    """Return the steps that no command does, or that are not in their order."""
    places = {
        name: [place for place, each in enumerate(listed) if re.search(pattern, each)]
        for name, pattern in STEPS.items()
    }
    absent = [name for name, found in places.items() if len(found) != 1]
    order = [found[0] for found in places.values() if len(found) == 1]
    return absent or ([] if order == sorted(order) else list(STEPS))


def reuse_packages(clone: Path) -> None:
    """Make the environment of a clone of the packages of this Python, marked as installed."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", ".venv"], cwd=clone, check=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    paths = [str(clone), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    (clone / ".venv" / "lib" / version / "site-packages" / "packages.pth").write_text("\n".join(paths))
    wsb = clone / ".venv" / "bin" / "wsb"
    wsb.write_text(f"#!{clone}/.venv/bin/python\nfrom service.cli.commands import app\n\napp()\n")
    wsb.chmod(0o755)
    wanted = (clone / "requirements-dev.lock").read_bytes() + (clone / "pyproject.toml").read_bytes()
    (clone / ".venv" / "installed").write_text(f"{hashlib.sha256(wanted).hexdigest()}  -\n")


def run(command: str, folder: Path, notes: Path) -> tuple[str, Path]:
    """Run one command as a shell of CI would; return what it printed and the folder in which the next one runs."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{ROOT}.insteadOf",
        "GIT_CONFIG_VALUE_0": ADDRESS,
        "CI": "true",
        "GITHUB_STEP_SUMMARY": str(notes / "summary.md"),
    }
    script = f'set -e\n{command}\npwd >"{notes}/folder"\n'
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{done.stdout}{done.stderr}\nexit code {done.returncode}: {command}")
    return done.stdout, Path((notes / "folder").read_text().strip())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--reuse", action="store_true", help="take the packages of this Python instead of installing them"
    )
    arguments = parser.parse_args()
    listed = commands((ROOT / "README.md").read_text(encoding="utf-8"))
    if absent := missing(listed):
        raise SystemExit(
            f"README.md lacks these first steps, or has them twice or in another order: {', '.join(absent)}"
        )
    if len(listed) > MAX_COMMANDS:
        raise SystemExit(f"README.md has {len(listed)} commands for first steps, and {MAX_COMMANDS} are allowed")
    with tempfile.TemporaryDirectory(prefix="wsb-first-steps-") as place:
        folder, notes = Path(place) / "work", Path(place)
        folder.mkdir()
        total = 0.0
        for command in listed:
            began = time.monotonic()
            printed, folder = run(command, folder, notes)
            seconds = time.monotonic() - began
            total += seconds
            print(f"{seconds:7.1f} s  {command.splitlines()[0]}", flush=True)
            if re.search(STEPS["clone"], command) and arguments.reuse:
                reuse_packages(folder)
            if re.search(r"wsb (analyze|check)|scripts/demo", command) and "λ_max" not in printed:
                raise SystemExit(f"{printed}\nnothing of λ_max is printed by: {command}")
        if "λ_max" not in (notes / "summary.md").read_text(encoding="utf-8"):
            raise SystemExit("the gate wrote no summary for CI")
    print(f"{total:7.1f} s  for {len(listed)} commands")


if __name__ == "__main__":
    main()
