"""How deep the functions and classes of an archive refer to each other.

torch compiles a function that another one calls while it compiles that one, and inlines calls by recursion, so a long
chain overflows its stack. The depth is bounded from the names in the code: a function or class can reach only what
it names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter

from wsb_engine.formats.torchscript import problems

DEPTH = 256
"""Functions on one chain of calls; torch's own limit is between 600 and 1500, real models stay below 60."""


@dataclass
class Unit:
    """A class, or a function outside one."""

    name: str
    """Qualified: ``__torch__.torch.nn.modules.linear.Linear``."""
    functions: int = 0
    """Number of functions that it defines; they may call each other in a chain."""
    references: dict[str, str] = field(default_factory=dict)
    """Dotted names that occur in it → where they do."""


def check_depth(units: Iterable[Unit]) -> None:
    """Reject references to nothing, in a circle, or in chains longer than torch can follow.

    Raises:
        ModelError: ``model_invalid``, ``model_too_complex``.
    """
    known: dict[str, Unit] = {}
    for unit in units:
        if unit.name in known:
            raise problems.invalid(f"the code defines {unit.name} twice")
        known[unit.name] = unit
    edges = {name: _resolved(unit, known) for name, unit in known.items()}
    try:
        order = list(TopologicalSorter(edges).static_order())
    except CycleError as error:
        first, second, *_ = error.args[1]
        raise problems.invalid(f"{first} and {second} refer to each other in a circle") from error
    depths: dict[str, int] = {}
    for name in order:
        depths[name] = known[name].functions + max((depths[target] for target in edges[name]), default=0)
        problems.limit("functions in one chain of calls", depths[name], DEPTH)


def _resolved(unit: Unit, known: Mapping[str, Unit]) -> list[str]:
    found = set()
    for reference, where in unit.references.items():
        parts = reference.split(".")
        prefixes = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
        target = next((prefix for prefix in prefixes if prefix in known), None)
        if target is None:
            raise problems.invalid(f"{where}: {reference} is not in the archive")
        if target != unit.name:
            found.add(target)
    return sorted(found)
