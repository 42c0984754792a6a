"""Show the layout at a glance: modules per folder, cyclic imports, and imports from a higher layer.

    .venv/bin/python scripts/house.py

Exits with 1 if there is a cycle of files or folders, or an import from a higher layer. The layers are those that
pyproject.toml states for import-linter. Within one folder, each file or folder counts with everything it contains.
"""

from __future__ import annotations

import sys
import tomllib
from collections import Counter, defaultdict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("wsb", "wsb_engine", "service")
MOST = 20
"""Largest number of modules in a folder before a note is printed."""


def circles(graph: grimp.ImportGraph) -> list[str]:
    """Return one cycle for each folder that has any, as a chain of names."""
    above: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for importer in graph.modules:
        for imported in graph.find_modules_directly_imported_by(importer):
            one, other = importer.split("."), imported.split(".")
            same = next((i for i, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), None)
            # Skip a package and a module inside it, and modules of two packages.
            if same:
                above[".".join(one[:same])][one[same]].add(other[same])
    found = []
    for folder, imports in above.items():
        try:
            TopologicalSorter(imports).prepare()
        except CycleError as error:
            found.append(f"{folder}: {' -> '.join(error.args[1])}")
    return sorted(found)


def upward(graph: grimp.ImportGraph) -> list[str]:
    """Return imports from a higher layer."""
    found = []
    for contract in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]:
        if contract["type"] != "layers":
            continue
        for folder in contract["containers"]:
            layers = [{name.strip() for name in layer.split("|")} for layer in contract["layers"]]
            level = {f"{folder}.{name}": index for index, names in enumerate(layers) for name in names}
            depth = folder.count(".") + 2
            for importer in graph.modules:
                for imported in graph.find_modules_directly_imported_by(importer):
                    one, other = (".".join(name.split(".")[:depth]) for name in (importer, imported))
                    if one != other and one in level and other in level and level[other] <= level[one]:
                        found.append(f"{importer} -> {imported}")
    return sorted(found)


def main() -> int:
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py") if path.name != "__init__.py"]
    for folder, count in sorted(Counter(path.parent.relative_to(ROOT) for path in files).items()):
        print(f"{count:4}  {folder}{'' if count <= MOST else f'  more than {MOST}'}")
    sys.path.insert(0, str(ROOT))
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    for name, found in (("circles", circles(graph)), ("upward imports", upward(graph))):
        print(f"{len(found):4}  {name}", *found, sep="\n      ")
    return 1 if circles(graph) or upward(graph) else 0


if __name__ == "__main__":
    sys.exit(main())
