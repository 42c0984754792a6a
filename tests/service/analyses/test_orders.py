"""Lists by the numbers of reports: complete, in order, and read from indexes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest
from sqlalchemy import Select
from sqlalchemy.dialects import postgresql
from support.service import Service

from service.analyses.listing import SORTS, Listing, queries

ROWS = (
    "INSERT INTO analyses (id, tenant, model, batch, options, labels, priority, timeout_s, state, attempts, revision,"
    " loss, accuracy, parameters, lambda_max_lower, lambda_max_upper, seconds, device, reliable, name)"
    " SELECT gen_random_uuid(), 'default', 'm', 'b', '{{}}', '{{}}', 0, 1, 'succeeded', 1, 1, {loss}, {accuracy},"
    " {parameters}, 1, {upper}, {seconds}, 'cpu', true, i::text FROM generate_series(1, {count}) AS i"
)
BY_NUMBER = [sort for sort in SORTS if "created" not in sort]


def fill(service: Service, count: int) -> None:
    """Store analyses with many equal numbers, and some without any."""
    of = "CASE WHEN i %% 7 = 0 THEN NULL ELSE {} END"
    values = {
        "loss": of.format("(i * 37 %% 101) / 10.0 + 1e-9"),
        "accuracy": of.format("(i %% 3) / 2.0"),
        "parameters": of.format("1000000007 * (i %% 2 + 1)"),
        "upper": of.format("(i * 53 %% 89) * 1e-3 - 0.02"),
        "seconds": of.format("i * 1e5"),
    }
    service.sql(ROWS.format(count=count, **values))
    service.sql("ANALYZE analyses")


def listed(service: Service, sort: str, limit: int) -> Iterator[dict[str, Any]]:
    path: str | None = f"/v1/analyses?sort={sort}&limit={limit}"
    while path is not None:
        page = service.client.get(path).json()
        yield from page["items"]
        path = page["next"]


@pytest.mark.slow
def test_every_order_is_complete_over_its_pages_with_equals_by_age_and_what_has_no_number_last(api: Service) -> None:
    fill(api, 90)
    for sort in BY_NUMBER:
        found = list(listed(api, sort, 8))
        name, falls = sort.removeprefix("-"), sort.startswith("-")
        known = [(item["numbers"][name], int(item["name"])) for item in found if item["numbers"] is not None]
        known = [(value["upper"] if name == "lambda_max" else value, number) for value, number in known]
        unknown = [int(item["name"]) for item in found if item["numbers"] is None]
        assert known == sorted(known, key=lambda pair: (-pair[0] if falls else pair[0], -pair[1])), sort
        assert len(known) + len(unknown) == 90
        assert found[len(known) :] == [item for item in found if item["numbers"] is None]
        assert unknown == sorted(unknown, reverse=True), sort
        assert len({item["id"] for item in found}) == 90


@pytest.mark.slow
def test_every_page_is_read_from_an_index(api: Service) -> None:
    fill(api, 3000)
    for sort in BY_NUMBER:
        page = api.client.get("/v1/analyses", params={"sort": sort, "limit": 200}).json()
        [after] = parse_qs(urlsplit(page["next"]).query)["after"]
        for place in (None, after, "1000:null"):
            for query in queries("default", Listing(sort=sort), place):
                plan = explained(api, query.limit(21))
                assert "Index Scan" in plan, plan
                assert "Seq Scan" not in plan, plan
                # Equals may be sorted, of which there are few in such a column; "Incremental Sort" says so.
                assert re.search(r"^[ >-]*Sort$", plan, re.MULTILINE) is None, plan


def explained(service: Service, query: Select[Any]) -> str:
    compiled = query.compile(dialect=postgresql.dialect(), compile_kwargs={"literal_binds": True})
    with psycopg.connect(str(service.settings.database_url)) as connection:
        return "\n".join(line for (line,) in connection.execute(f"EXPLAIN (COSTS OFF) {compiled}"))
