"""The commands of operators: `wsb backup`, `wsb restore` and `wsb doctor`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.ending import Exit, end
from service.cli.needs import needs_linux, needs_the_server, read_settings

if TYPE_CHECKING:
    from service.operations.archive import Manifest
    from service.settings import Settings

_SHOWN = 20
"""Damaged files that are listed."""


def backup(
    file: Annotated[Path, typer.Argument(dir_okay=False, help="File to write; it must not exist.", show_default=False)],
) -> None:
    """Back up the database, embedded or that of WSB_DATABASE_URL, with all models and batches.

    The service may be running: the backup is its state at one moment. Keep the file secret, and the settings with it:
    API keys are not in it.

    Exit codes: 0 done, 2 not possible here, 3 not done, or files were missing or damaged.
    """
    import asyncio

    needs_linux()
    with needs_the_server():
        from service.operations.backup import back_up
    settings = read_settings()
    if file.exists():
        end(f"{file} exists; give the backup another name, or delete it first.", Exit.INVALID)
    with _ending_on_errors(), _database(settings) as url:
        manifest = asyncio.run(back_up(settings, url, file))
    _note("backup", file, manifest)
    typer.echo(f"{file}: {_contents(manifest)}")
    if manifest.damaged:
        shown = "\n".join(manifest.damaged[:_SHOWN])
        end(
            f"{len(manifest.damaged)} files are missing or damaged in the storage, and not in the backup:\n{shown}\n"
            "Upload them again, or look for them in an earlier backup.",
            Exit.NOT_EVALUATED,
        )


def restore(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="File that wsb backup wrote.")],
    replace: Annotated[
        bool, typer.Option("--replace", help="Delete everything that the installation contains now.")
    ] = False,
) -> None:
    """Load a backup into an empty installation, whose processes are stopped.

    Analyses that had not ended at the time of the backup are queued again.

    Exit codes: 0 done, 2 not possible here, 3 not done.
    """
    import asyncio

    needs_linux()
    with needs_the_server():
        from service.operations.archive import ArchiveReader
        from service.operations.restore import restore as load
        from service.server.postgres import embedded_postgres
    settings = read_settings()
    with _ending_on_errors(), ArchiveReader(file) as archive:
        if settings.database_url is not None:
            asyncio.run(load(settings, settings.database_url, archive, replace=replace))
        else:
            with embedded_postgres(settings.data_dir) as url:
                asyncio.run(load(settings, url, archive, replace=replace))
        manifest = archive.manifest
    _note("restore", file, manifest)
    typer.echo(f"Restored {_contents(manifest)}, as of {manifest.created_at:%Y-%m-%d %H:%M:%S} UTC.")


def doctor(
    files: Annotated[
        bool, typer.Option("--files", help="Read every model and batch, and compare it with its digest.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Say what is wrong with this installation, and what to do about it.

    Exit codes: 0 nothing is wrong, 1 something should be looked at, 2 invalid settings, 3 the service can't work.
    """
    import asyncio
    from json import dumps

    needs_linux()
    with needs_the_server():
        from service.operations.doctor import examine
    settings = read_settings()
    findings = asyncio.run(examine(settings, files=files))
    if json:
        typer.echo(dumps([finding.model_dump() for finding in findings], indent=2))
    else:
        for finding in findings:
            typer.echo(f"{finding.level:8} {finding.check:9} {finding.detail}")
            if finding.advice:
                typer.echo(f"{'':18} → {finding.advice}")
    levels = {finding.level for finding in findings}
    if "problem" in levels:
        raise typer.Exit(Exit.NOT_EVALUATED)
    raise typer.Exit(Exit.FAILED if "warning" in levels else Exit.DONE)


@contextmanager
def _database(settings: Settings) -> Iterator[str]:
    """Yield the URL of the database, whether or not the service is running."""
    from service.server.postgres import existing_postgres

    if settings.database_url is not None:
        yield settings.database_url
        return
    with existing_postgres(settings.data_dir) as url:
        yield url


@contextmanager
def _ending_on_errors() -> Iterator[None]:
    import psycopg
    from sqlalchemy.exc import OperationalError

    from service.database.engine import NewerDatabaseError
    from service.errors import ServiceError
    from service.operations.archive import UnusableArchiveError
    from service.operations.backup import NotBackedUpError
    from service.operations.restore import NotRestoredError
    from service.server.postgres import DataFolderInUseError, NoDatabaseError

    try:
        yield
    except (UnusableArchiveError, NotBackedUpError, NotRestoredError, NoDatabaseError, DataFolderInUseError) as error:
        end(str(error), Exit.INVALID)
    except ServiceError as error:
        end(" ".join(filter(None, (error.detail, error.advice))), Exit.NOT_EVALUATED)
    except NewerDatabaseError as error:
        end(str(error), Exit.NOT_EVALUATED)
    except (OperationalError, psycopg.OperationalError) as error:
        cause = error.orig if isinstance(error, OperationalError) else error
        end(f"The database can't be used: {cause}", Exit.NOT_EVALUATED)
    except OSError as error:
        end(f"{error.filename or 'A file'} can't be read or written: {error.strerror or error}", Exit.NOT_EVALUATED)


def _contents(manifest: Manifest) -> str:
    analyses, reports = manifest.rows("analyses"), manifest.rows("reports")
    return f"{analyses} analyses, {reports} reports, {manifest.files} files of models and batches"


def _note(operation: str, file: Path, manifest: Manifest) -> None:
    """Log who did what with which installation; the log adds the time."""
    from service.kit import audit

    analyses, files = manifest.rows("analyses"), manifest.files
    audit.note_by_operator(operation, file=str(file.resolve()), analyses=analyses, files=files)
