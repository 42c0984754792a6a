"""Filters and order of the list of analyses, as the page's address holds them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import get_args
from urllib.parse import urlencode

from service.analyses.endpoints import Cursor
from service.analyses.listing import NEWEST, SORTS, Listing, Sort
from service.analyses.schemas import LABEL, PLAIN
from service.analyses.table import State


@dataclass
class Filters:
    """What the address asks for; what makes no sense is shown with an error and filters nothing."""

    state: str = ""
    label: str = ""
    name: str = ""
    sort: str = NEWEST
    after: Cursor = None
    errors: dict[str, str] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.label, self.name = self.label.strip(), self.name.strip()
        if self.label and not LABEL.fullmatch(self.label):
            self.errors["label"] = "A label is a name, or name:value."
        if self.name and not re.fullmatch(PLAIN, self.name):
            self.errors["name"] = "A name has at most 200 characters, all of them visible."

    @property
    def listing(self) -> Listing:
        return Listing(
            states=[state for state in get_args(State) if state == self.state],
            labels=[self.label] if self.label and "label" not in self.errors else [],
            name="" if "name" in self.errors else self.name,
            sort=self.order,
        )

    @property
    def order(self) -> Sort:
        return next((sort for sort in SORTS if sort == self.sort), NEWEST)

    @property
    def is_on(self) -> bool:
        """True if something is filtered out."""
        return bool(self.state or self.label or self.name)

    def query(self, **changes: str) -> str:
        """Return the address's query with changes; without ``after``, it is that of the first page."""
        values = {"state": self.state, "label": self.label, "name": self.name, "sort": self.order, **changes}
        return "?" + urlencode(
            {key: value for key, value in values.items() if value and (key, value) != ("sort", NEWEST)}
        )

    def sorted_by(self, column: str) -> str:
        """Return the query that sorts by a column: the largest first, or the smallest if the largest are first now."""
        return self.query(sort=column if self.order == f"-{column}" else f"-{column}")

    def direction(self, column: str) -> str:
        """Return the value of ``aria-sort`` of a column; empty if the list is in another order."""
        if self.order.removeprefix("-") != column:
            return ""
        return "descending" if self.order.startswith("-") else "ascending"
