"""The commands `wsb serve` and `wsb worker`: the processes of an installation."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.ending import Exit, end
from service.cli.needs import needs_linux, needs_the_server, read_settings

if TYPE_CHECKING:
    from service.settings import Settings


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    workers: Annotated[
        int | None, typer.Option(min=0, max=256, help="Number of worker processes.", show_default="one per device")
    ] = None,
) -> None:
    """Run everything: the API, the database (embedded, unless WSB_DATABASE_URL is set) and the workers.

    Prints one line with the URL to stdout when it is ready, and logs to stderr.
    """
    needs_linux()
    from service.sandbox import SandboxError

    with needs_the_server():
        from service.http.bind_address import UnsafeBindAddressError
        from service.server.postgres import DataFolderInUseError
        from service.server.serve import DatabaseUnusableError
        from service.server.serve import serve as run

    settings = read_settings()
    try:
        run(settings, host=host, port=port, workers=workers, announce=_announce)
    except (DataFolderInUseError, UnsafeBindAddressError, SandboxError, OSError) as error:
        end(str(error), Exit.INVALID)
    except DatabaseUnusableError as error:
        end(str(error), Exit.NOT_EVALUATED)


def worker(
    device: Annotated[
        str,
        typer.Option(
            help="cpu, cuda:N, MIG-…, or all for one process per device.",
            show_default="the first device",
        ),
    ] = "",
    devices: Annotated[
        str,
        typer.Option(
            help="GPUs that one worker owns, such as cuda:0,cuda:1, or all: it also takes analyses of several devices."
        ),
    ] = "",
    supervised: Annotated[
        bool, typer.Option(hidden=True, help="Read the database's URL from stdin, and stop when stdin closes.")
    ] = False,
) -> None:
    """Run a worker for the database in WSB_DATABASE_URL.

    A device runs one analysis at a time, or several small ones.
    """
    import asyncio

    needs_linux()
    from service.kit.devices import UnknownDeviceError
    from service.sandbox import SandboxError

    settings = read_settings()
    if settings.database_url is None and not supervised:
        end("A worker needs a database: set WSB_DATABASE_URL, or use wsb serve.", Exit.INVALID)
    if device and devices:
        end("Give either --device or --devices.", Exit.INVALID)
    try:
        asyncio.run(_work(settings, device, devices, supervised=supervised))
    except (SandboxError, UnknownDeviceError) as error:
        end(str(error), Exit.INVALID)
    except Exception as error:
        from sqlalchemy.exc import OperationalError

        from service.database.engine import NewerDatabaseError

        if isinstance(error, NewerDatabaseError):
            end(str(error), Exit.NOT_EVALUATED)
        if not isinstance(error, OperationalError):
            raise
        end(f"The database can't be used: {error.orig}", Exit.NOT_EVALUATED)


async def _work(settings: Settings, device: str, devices: str, *, supervised: bool) -> None:
    """Run the workers of one machine until a signal stops them."""
    import asyncio

    from service.child.entry import PRELOAD
    from service.kit.devices import chosen_devices, see_only, several_devices
    from service.sandbox import Zygote

    names = [several_devices(devices)] if devices else chosen_devices(device)
    if device != "all":
        see_only(names[0])
    zygote = Zygote(PRELOAD)
    starting = None if device == "all" else asyncio.create_task(zygote.start())
    await asyncio.sleep(0)
    # Meanwhile the zygote imports, on another core.
    with needs_the_server():
        from service.server.supervision import supervise
        from service.worker.worker import stop_on_signals, work

    # Until the database is known, a signal ends this process at once.
    url = settings.database_url if not supervised else await asyncio.to_thread(sys.stdin.readline)
    if not url:
        return
    stop, hurry = asyncio.Event(), asyncio.Event()
    stop_on_signals(stop, hurry, supervised=supervised)
    if starting is None:
        await supervise(settings, names, stop, hurry)
    else:
        await starting
        await work(settings, url.strip(), device=names[0], stop=stop, zygote=zygote, hurry=hurry)


def _announce(url: str) -> None:
    sys.stdout.write(f"wsb serves {url}\n")
    sys.stdout.flush()
