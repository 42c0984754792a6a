"""What an exporter says about the constants of its file: which are parameters, and from what others were folded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from wsb_engine.formats.graph.tensors import all_finite
from wsb_engine.model import Tensors

_NAMED = 8
"""Tensors that a warning names; it counts the others."""


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Names of constants by what the file says about them; constants that it says nothing about are in no set."""

    learned: frozenset[str] = frozenset()
    """Parameters of the module, as they were or in another shape or order."""
    derived: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Constant folded from parameters, or from the shape of one → these parameters."""
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
            derived={names.get(name, name): sources for name, sources in self.derived.items()},
            computed=after(self.computed),
            names={names.get(name, name): parameter for name, parameter in self.names.items()},
        )


UNKNOWN = Provenance()
"""The file says nothing."""


def folding_warnings(provenance: Provenance, used: Tensors, left_out: Tensors) -> list[tuple[str, str]]:
    """Return warnings, as codes and messages, about tensors that the exporter computed from parameters.

    Args:
        provenance: What the file says about its constants.
        used: The constants that count as parameters.
        left_out: Other constants that z depends on.
    """
    derived = [name for name in used if name in provenance.derived]
    warnings = []
    if derived:
        message = (
            f"the exporter computed {_from(provenance, derived)}: H is that of the file's tensors, not of the "
            "parameters of the module that they come from"
        )
        counts = Counter(source for name in used for source in dict.fromkeys(_sources(provenance, name)))
        several = [name for name, count in counts.items() if count > 1 and _is_shared(provenance, name, derived)]
        if several:
            message += f"; {_listed(several)} counted in more than one of them"
        warnings.append(("derived_parameters", message))
    missed = [name for name in left_out if name in provenance.derived]
    if missed:
        message = f"the exporter computed {_from(provenance, missed)}: not counted as parameters"
        finite = [name for name in missed if all_finite(left_out[name])]
        if finite:
            flags = " ".join(f"--parameters '{name}'" for name in finite[:_NAMED])
            message += f"; to include what is finite: --parameters '*' {flags}"
        warnings.append(("left_out_parameters", message))
    return warnings


def _sources(provenance: Provenance, name: str) -> tuple[str, ...]:
    return provenance.derived.get(name, (provenance.names.get(name, name),))


def _is_shared(provenance: Provenance, source: str, derived: list[str]) -> bool:
    return any(source in provenance.derived[name] for name in derived)


def _from(provenance: Provenance, names: list[str]) -> str:
    return _listed([f"{name!r} from {' and '.join(provenance.derived[name])}" for name in names])


def _listed(texts: list[str]) -> str:
    more = [f"{len(texts) - _NAMED} more"] if len(texts) > _NAMED else []
    return ", ".join([*texts[:_NAMED], *more])
