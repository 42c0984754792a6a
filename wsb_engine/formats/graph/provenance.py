"""What an exporter says about the constants of its file: which are parameters, and from what others were folded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Names of constants by what the file says about them; constants that it says nothing about are in no set."""

    learned: frozenset[str] = frozenset()
    """Parameters of the module, as they were or in another shape or order."""
    derived: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Constant that was computed → the parameters that it was computed from, or from whose shapes."""
    computed: frozenset[str] = frozenset()
    """Buffers, and constants that no parameter had a part in."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Constant → the one parameter whose elements it holds in another shape or order."""

    def renamed(self, names: Mapping[str, str]) -> Provenance:
        """Return the same with some constants under other names."""

        def after(constants: frozenset[str]) -> frozenset[str]:
            return frozenset(names.get(name, name) for name in constants)

        return Provenance(
            learned=after(self.learned),
            derived={names.get(name, name): parameters for name, parameters in self.derived.items()},
            computed=after(self.computed),
            names={names.get(name, name): parameter for name, parameter in self.names.items()},
        )


UNKNOWN = Provenance()
"""The file says nothing."""

_SHOWN = 20


def folded(told: Provenance, used: Collection[str], others: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield code and message of warnings about tensors that an exporter folded from parameters.

    Args:
        told: What the file says.
        used: Names of the tensors that count as parameters.
        others: Names of the other constants that the logits depend on.
    """
    if derived := [name for name in used if name in told.derived]:
        yield (
            "derived_parameters",
            f"the exporter computed {_sourced(derived, told)}: H is the Hessian over these "
            "tensors of the file, not over what they were computed from",
        )
    holders = Counter(told.names.get(name, name) for name in used)
    if parts := [name for name in used if name in told.names and holders[told.names[name]] > 1]:
        yield (
            "tied_copies",
            f"the file holds elements of the parameters in brackets more than once, {_sourced(parts, told)}: each "
            "tensor counts separately",
        )
    if lost := [name for name in others if name not in used and (name in told.derived or name in told.learned)]:
        yield (
            "left_out_parameters",
            f"the exporter computed {_sourced(lost, told)}, or from their shapes: they don't "
            "count as parameters; to include them, name them in parameters",
        )


def _sourced(names: Collection[str], told: Provenance) -> str:
    """List tensors with what they were computed from."""
    sources = {name: told.derived.get(name, (told.names.get(name, name),)) for name in names}
    return listed(names, lambda name: f"{name!r} from [{', '.join(sources[name])}]")


def listed(names: Collection[str], shown: Callable[[str], str] = repr) -> str:
    """List names for a message, not all of many."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(shown, list(names)[:_SHOWN])) + more
