"""Ways for a database to be away."""

from __future__ import annotations

import psycopg
from psycopg import sql

from support.service import Service

WAITING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
"""How many queries wait for a lock."""


def close_database(service: Service, postgres: str) -> None:
    """Ends every connection to the service's database and lets nobody in any more."""
    name = str(service.settings.database_url).partition("?")[0].rsplit("/", 1)[1]
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(sql.Identifier(name)))
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))
