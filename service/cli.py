"""The command `wsb`."""

from __future__ import annotations

import asyncio
import sys
from enum import IntEnum
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from pydantic import ValidationError

import wsb_engine
from service.errors import field_errors
from service.flags import with_options
from service.settings import Settings
from wsb_engine.options import Options

app = typer.Typer(
    help="How sharp is a trained classifier, with proof.", no_args_is_help=True, pretty_exceptions_enable=False
)


class Exit(IntEnum):
    """Exit codes of every command."""

    DONE = 0
    INVALID = 2
    NOT_EVALUATED = 3
    INTERRUPTED = 130


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(wsb_engine.__version__)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """How sharp is a trained classifier, with proof: bounds on the largest eigenvalue of the cross-entropy Hessian."""


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    workers: Annotated[
        int | None, typer.Option(min=0, max=256, help="Worker processes.", show_default="one a device")
    ] = None,
) -> None:
    """Run everything: the API, the database (embedded, unless WSB_DATABASE_URL is set) and the workers.

    Prints one line with the URL on stdout when it is ready, and logs on stderr.
    """
    from sqlalchemy.exc import OperationalError

    from service.postgres import DataFolderInUseError
    from service.sandbox import SandboxError
    from service.serve import serve as run

    settings = _settings()
    try:
        run(settings, host=host, port=port, workers=workers, announce=_announce)
    except (DataFolderInUseError, SandboxError, OSError) as error:
        _end(str(error), Exit.INVALID)
    except OperationalError as error:
        _end(f"The database can't be used: {error.orig}", Exit.NOT_EVALUATED)


@app.command()
def worker(
    device: Annotated[str, typer.Option(help="cpu or cuda:N.", show_default="the first there is")] = "",
    supervised: Annotated[bool, typer.Option(hidden=True, help="Stop when stdin closes.")] = False,
) -> None:
    """Run one worker for the database in WSB_DATABASE_URL; its device runs one analysis at a time."""
    from sqlalchemy.exc import OperationalError

    from service.analyses.job import PRELOAD
    from service.devices import offered_devices
    from service.sandbox import SandboxError, Zygote
    from service.worker import stop_on_signals, work

    settings = _settings()
    url = settings.database_url
    if url is None:
        _end("A worker needs a database: set WSB_DATABASE_URL, or use wsb serve.", Exit.INVALID)

    async def run() -> None:
        stop = asyncio.Event()
        stop_on_signals(stop, supervised=supervised)
        chosen = device or offered_devices()[0]
        await work(settings, url, device=chosen, stop=stop, zygote=Zygote(PRELOAD))

    try:
        asyncio.run(run())
    except SandboxError as error:
        _end(str(error), Exit.INVALID)
    except OperationalError as error:
        _end(f"The database can't be used: {error.orig}", Exit.NOT_EVALUATED)


@app.command()
@with_options
def analyze(
    model: Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True, help="ONNX file.")],
    batch: Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True, help=".npz or .safetensors.")],
    json: Annotated[Path | None, typer.Option(dir_okay=False, help="Write the report here; - for stdout.")] = None,
    url: Annotated[str | None, typer.Option(help="Use this server instead of this machine.")] = None,
    timeout: Annotated[float | None, typer.Option(min=0.001, help="Wall-clock seconds.")] = None,
    *,
    options: Options,
) -> None:
    """Analyse a model on a batch and print the bounds.

    Exit codes: 0 done, 2 invalid input, 3 could not be evaluated.
    """
    from service.evaluation import InvalidInputError, NotEvaluatedError, evaluate_here, evaluate_there
    from service.progress import shown_progress
    from service.summary import summarize

    settings = _settings()
    try:
        with shown_progress() as progress:
            if url is not None:
                report = evaluate_there(url, model, batch, options, seconds=timeout, progress=progress)
            else:
                here = evaluate_here(
                    *(model, batch, options),
                    settings=settings,
                    seconds=timeout or settings.job_seconds,
                    progress=progress,
                )
                report = asyncio.run(here)
    except InvalidInputError as error:
        _end(str(error), Exit.INVALID)
    except NotEvaluatedError as error:
        _end(str(error), Exit.NOT_EVALUATED)
    except (KeyboardInterrupt, asyncio.CancelledError):
        _end("Interrupted.", Exit.INTERRUPTED)
    if json == Path("-"):
        typer.echo(report.model_dump_json(indent=2))
        return
    if json is not None:
        json.write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
    typer.echo(summarize(report))


@app.command()
def openapi() -> None:
    """Print the OpenAPI specification."""
    from service.app import create_app
    from service.openapi import render

    typer.echo(render(create_app(Settings())), nl=False)


def _settings() -> Settings:
    from service import logs

    try:
        settings = Settings()
    except ValidationError as error:
        lines = [f"WSB_{item.pointer.strip('/').upper()}: {item.detail}" for item in field_errors(error)]
        _end("\n".join(lines), Exit.INVALID)
    logs.configure(form=settings.log_format, level=settings.log_level)
    return settings


def _announce(url: str) -> None:
    sys.stdout.write(f"wsb serves {url}\n")
    sys.stdout.flush()


def _end(text: str, code: Exit) -> NoReturn:
    sys.stderr.write(f"{text}\n")
    raise typer.Exit(code)


if __name__ == "__main__":
    app()
