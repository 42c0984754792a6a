"""What an exporter says about the constants of its file: which are parameters, and from what others were folded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Names of constants by what the file says about them; constants that it says nothing about are in no set."""

    learned: frozenset[str] = frozenset()
    """Parameters of the module, as they were or in another shape or order."""
    derived: frozenset[str] = frozenset()
    """Folded from parameters, or from the shape of one."""
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
            derived=after(self.derived),
            computed=after(self.computed),
            names={names.get(name, name): parameter for name, parameter in self.names.items()},
        )


UNKNOWN = Provenance()
"""The file says nothing."""
