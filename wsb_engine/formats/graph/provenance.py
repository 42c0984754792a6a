"""What an exporter says about the constants of its file: which are parameters, and from what others were folded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field

from wsb_engine.formats.graph.tensors import all_finite
from wsb_engine.model import Tensors


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Names of constants by what the file says about them; constants that it says nothing about are in no set."""

    learned: frozenset[str] = frozenset()
    """Parameters of the module, as they were or in another shape or order."""
    derived: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Constant that was computed → the parameters that it was computed from, or from whose shapes."""
    of_shapes: frozenset[str] = frozenset()
    """Those of ``derived`` that are numbers computed from shapes, such as the scale of attention."""
    computed: frozenset[str] = frozenset()
    """Buffers, and constants that no parameter had a part in."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Constant → the one parameter whose elements it holds in another shape or order."""
    auxiliary: frozenset[str] = frozenset()
    """Buffers by their names, if the file has no record: those that normalise or prune a weight."""

    @property
    def recorded(self) -> bool:
        """True if the file has a record."""
        return bool(self.learned or self.derived or self.computed or self.names)

    def renamed(self, names: Mapping[str, str]) -> Provenance:
        """Return the same with some constants under other names."""

        def after(constants: frozenset[str]) -> frozenset[str]:
            return frozenset(names.get(name, name) for name in constants)

        return Provenance(
            learned=after(self.learned),
            derived={names.get(name, name): sources for name, sources in self.derived.items()},
            of_shapes=after(self.of_shapes),
            computed=after(self.computed),
            names={names.get(name, name): parameter for name, parameter in self.names.items()},
            auxiliary=after(self.auxiliary),
        )


UNKNOWN = Provenance()
"""The file says nothing."""

_SHOWN = 20


def folded(told: Provenance, used: Tensors, others: Tensors) -> Iterator[tuple[str, str]]:
    """Yield code and message of warnings about tensors that an exporter folded from parameters.

    Args:
        told: What the file says.
        used: The tensors that count as parameters.
        others: The other constants that the logits depend on.
    """
    holders = Counter(source for name in used for source in dict.fromkeys(_sources(name, told)))
    if derived := [name for name in used if name in told.derived]:
        sources = dict.fromkeys(source for name in derived for source in told.derived[name])
        several = [source for source in sources if holders[source] > 1]
        more = f"; {listed(several)} had a part in more than one of the tensors that count" if several else ""
        yield (
            "derived_parameters",
            f"the exporter computed {_sourced(derived, told)}: H is the Hessian over these "
            f"tensors of the file, not over what they were computed from{more}",
        )
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
            f"count as parameters{inclusion({name: others[name] for name in lost})}",
        )


def inclusion(tensors: Tensors) -> str:
    """Return the end of a warning about tensors that are left out: how to include those that can be."""
    finite = [name for name, tensor in tensors.items() if all_finite(tensor)]
    if len(finite) == len(tensors):
        return "; to include them, name them in parameters"
    rest = "; those that hold infinities can't: torch.export.save keeps the parameters that they were computed from"
    return f"; to include {listed(finite)}, name them in parameters{rest}" if finite else rest


def _sources(name: str, told: Provenance) -> tuple[str, ...]:
    return told.derived.get(name, (told.names.get(name, name),))


def _sourced(names: Collection[str], told: Provenance) -> str:
    """List tensors with what they were computed from."""
    return listed(names, lambda name: f"{name!r} from [{', '.join(_sources(name, told))}]")


def listed(names: Collection[str], shown: Callable[[str], str] = repr) -> str:
    """List names for a message, not all of many."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(shown, list(names)[:_SHOWN])) + more
