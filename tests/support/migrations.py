"""Tables of earlier versions."""

from __future__ import annotations

import asyncio
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection

import service
from service.database.engine import Database


def move(url: str, revision: str) -> None:
    """Brings the database's tables to a revision, older or newer."""

    def run(connection: Connection) -> None:
        config = Config()
        config.set_main_option("script_location", str(Path(service.__file__).parent / "database" / "migrations"))
        config.set_main_option("path_separator", "os")
        config.attributes["connection"] = connection
        known = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
        (command.downgrade if str(known) > revision else command.upgrade)(config, revision)

    async def act() -> None:
        database = Database(url)
        async with database.engine.begin() as connection:
            await connection.run_sync(run)
        await database.close()

    asyncio.run(act())
