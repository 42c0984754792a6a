"""One analysis for the command line, on a server."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from pydantic import SecretStr

from service.cli.evaluate import InvalidInputError, NotEvaluatedError, ended, failure
from service.cli.progress import ProgressSink
from service.client.blocking import Client
from service.client.errors import UNREACHABLE, ClientError, OlderServerWarning
from service.client.resources import Analysis
from service.client.retries import BUSY
from service.policies import Policy
from wsb_engine.errors import EngineError
from wsb_engine.options import Options
from wsb_engine.report import Report

_MEANWHILE = (
    "Run the command again later or with a longer --timeout, cancel analyses that are no longer needed, or ask the"
    " operator for more workers or a longer queue (WSB_MAX_QUEUE, WSB_MAX_QUEUE_PER_TENANT)."
)


@contextmanager
def connected(url: str, key: SecretStr | None, *, busy_seconds: float) -> Iterator[Client]:
    """Yield a client of a server, whose warnings go to stderr.

    Args:
        url: URL of the server.
        key: API key.
        busy_seconds: How long requests are repeated while the server has too much to do.

    Raises:
        InvalidInputError, NotEvaluatedError: in place of the client's errors, with a message for the user.
    """
    try:
        client = Client(url, None if key is None else key.get_secret_value(), busy_seconds=busy_seconds)
    except ValueError:
        # Not the client's text: the user knows the key by this name.
        raise InvalidInputError("WSB_API_KEY contains characters that no key has.") from None
    with client, warnings.catch_warnings():
        warnings.simplefilter("always", OlderServerWarning)
        warnings.showwarning = _show
        try:
            yield client
        except EngineError as error:
            raise failure(error.code, error.message, error.advice, broke_down=False) from error
        except ClientError as error:
            raise _told(error, busy_seconds) from error


def _show(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Show a warning without the place in the code that ``warnings.showwarning`` names."""
    sys.stderr.write(f"Warning: {message}\n")


def evaluate_there(
    client: Client,
    model: Path,
    batch: Path,
    options: Options,
    *,
    seconds: float | None,
    progress: ProgressSink,
    policy: Policy | None = None,
    baseline: Report | None = None,
    told: Mapping[str, Any] | None = None,
    optimizer_state: Path | None = None,
) -> tuple[Analysis, Report]:
    """Analyse on a server and return the analysis and its report; an interrupt cancels it there.

    Args:
        client: Client of the server.
        model: Model file.
        batch: Batch file.
        options: Options of the engine.
        seconds: Wall-clock limit that the server applies; None for the server's default.
        progress: Called with the progress of the upload and the analysis.
        policy: Policy, if the analysis depends on it.
        baseline: Its baseline.
        told: Name and labels of the analysis, as ``Client.submit`` takes them.
        optimizer_state: File with the second moments of an optimizer.

    Raises:
        ClientError, EngineError: as ``Client.submit``, or if the analysis ends without a report.
    """
    analysis = client.submit(
        *(model, batch, options, policy),
        baseline=baseline,
        optimizer_state=optimizer_state,
        timeout_s=seconds,
        progress=progress,
        **(told or {}),
    )
    try:
        found = client.wait(analysis, progress=progress)
    except KeyboardInterrupt:
        client.cancel(analysis)
        raise
    return found, client.report(found)


def _told(error: ClientError, busy_seconds: float) -> InvalidInputError | NotEvaluatedError:
    if error.code == UNREACHABLE:
        return NotEvaluatedError(error.detail)
    if error.status == BUSY:
        asks = "" if error.retry_after is None else f" It asks to be tried again in {error.retry_after:g} seconds."
        advice = f"The command waits no longer than {busy_seconds:g} seconds for a busy server.{asks} {_MEANWHILE}"
        return failure(error.code, error.detail, advice, broke_down=True)
    if error.state is not None:
        return ended(error.state, error.code, error.detail, error.advice)
    fields = "".join(f"\n{item.pointer}: {item.detail}" for item in error.errors)
    broke_down = error.status is None or error.status >= 500
    return failure(error.code, error.detail + fields, error.advice, broke_down=broke_down)
