"""Which tables a backup contains, and how they depend on each other."""

from __future__ import annotations

from graphlib import TopologicalSorter
from typing import Any, LiteralString

import psycopg
from psycopg import sql

_LEFT_OUT = frozenset({"alembic_version", "leftovers", "queue_migrations", "sessions", "turns", "workers"})
"""What belongs to the running processes, and not to what tenants have stored; users sign in again."""
_QUEUE = "procrastinate_"
"""Prefix of the queue's tables. They follow from the analyses that have not ended."""

_COLUMNS = """
SELECT table_name, array_agg(column_name::text ORDER BY ordinal_position)
FROM information_schema.columns JOIN information_schema.tables USING (table_schema, table_name)
WHERE table_schema = current_schema() AND table_type = 'BASE TABLE' AND is_generated = 'NEVER'
GROUP BY table_name
"""
_DEPENDENCIES = """
SELECT source.relname, target.relname FROM pg_constraint
JOIN pg_class AS source ON source.oid = conrelid JOIN pg_class AS target ON target.oid = confrelid
WHERE contype = 'f' AND connamespace = current_schema()::regnamespace
"""
_IDENTITIES = """
SELECT table_name, column_name FROM information_schema.columns
WHERE table_schema = current_schema() AND is_identity = 'YES'
"""

Connection = psycopg.AsyncConnection[Any]


async def data_tables(connection: Connection) -> dict[str, list[str]]:
    """Return the columns of each table with data of tenants; a table comes after those it refers to."""
    columns = dict(await (await connection.execute(_COLUMNS)).fetchall())
    wanted = {name for name in columns if name not in _LEFT_OUT and not name.startswith(_QUEUE)}
    order = TopologicalSorter[str](dict.fromkeys(sorted(wanted), ()))
    for source, target in await (await connection.execute(_DEPENDENCIES)).fetchall():
        if {source, target} <= wanted:
            order.add(source, target)
    return {name: columns[name] for name in order.static_order()}


async def has_content(connection: Connection) -> bool:
    """Whether any of the tables has a row."""
    for name in await data_tables(connection):
        query = sql.SQL("SELECT EXISTS (SELECT FROM {})").format(sql.Identifier(name))
        if (await (await connection.execute(query)).fetchone() or (False,))[0]:
            return True
    return False


async def clear(connection: Connection) -> None:
    """Empty the tables and the queue."""
    queue = ("procrastinate_jobs", "procrastinate_workers")
    names = sql.SQL(", ").join(map(sql.Identifier, [*await data_tables(connection), "turns", "sessions", *queue]))
    await connection.execute(sql.SQL("TRUNCATE {} CASCADE").format(names))


async def continue_identities(connection: Connection) -> None:
    """Have columns that number their rows continue after the highest number."""
    for table, column in await (await connection.execute(_IDENTITIES)).fetchall():
        query = "SELECT setval(pg_get_serial_sequence({0}, {1}), coalesce(max({2}), 0) + 1, false) FROM {3}"
        name = sql.Identifier(table)
        await connection.execute(
            sql.SQL(query).format(sql.Literal(name.as_string(connection)), column, sql.Identifier(column), name)
        )


def copy(table: str, columns: list[str], direction: LiteralString) -> sql.Composed:
    """Return the statement that copies a table: ``TO STDOUT`` or ``FROM STDIN``."""
    names = sql.SQL(", ").join(map(sql.Identifier, columns))
    return sql.SQL("COPY {} ({}) {}").format(sql.Identifier(table), names, sql.SQL(direction))
