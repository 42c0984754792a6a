"""Servers of an earlier version, which refuse a request with fields that they do not know."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from service.client.effects import Flow, Send
from service.client.errors import ClientError, OlderServerWarning
from service.client.retries import Deadline, Session, request
from wsb_engine.options import Options
from wsb_engine.version import __version__

_UNKNOWN = "Extra inputs are not permitted"
"""What a server says of a field that it does not know, in the words of pydantic."""
_NAMES = frozenset({"name", "model_name", "batch_name", "labels"})
"""Fields that change nothing in the report."""


def is_about_unknown_fields(error: ClientError) -> bool:
    """Whether a server has refused a request for nothing but fields that it does not know."""
    return bool(error.errors) and all(item.detail == _UNKNOWN for item in error.errors)


def without_unknown_fields(
    session: Session, settings: Mapping[str, Any], error: ClientError, deadline: Deadline
) -> Flow[dict[str, Any]]:
    """Return a request without the fields that the server does not know, and warn of them.

    Args:
        session: What requests share.
        settings: The request.
        error: How the server has refused it.
        deadline: When to give up.

    Raises:
        ClientError: ``error``, if this client does not know one of the fields either; or one that names the versions,
            if the report would be another one without it.
    """
    kept = {name: dict(value) if isinstance(value, Mapping) else value for name, value in settings.items()}
    refused = [item.pointer for item in error.errors]
    if not all(map(_is_known, refused)):
        raise error
    theirs = yield from _version(session, deadline)
    server = "The server" if theirs is None else f"The server (version {theirs})"
    which = ", ".join(pointer.strip("/").replace("/", ".") for pointer in refused)
    told = f"{server} does not know {which}, which this client (version {__version__}) sends: the server is older."
    if not all(_is_needless(pointer, settings) for pointer in refused):
        raise ClientError(
            told,
            code=error.code,
            status=error.status,
            advice="Upgrade the server, or leave out what it does not know.",
            errors=error.errors,
        )
    for pointer in refused:
        *parents, name = pointer.strip("/").split("/")
        (kept[parents[0]] if parents else kept).pop(name, None)
    warnings.warn(f"{told} The analysis was requested without.", OlderServerWarning, stacklevel=2)
    return kept


def _is_known(pointer: str) -> bool:
    """Whether this version has such a field; otherwise its name is wrong for every server."""
    parent, _, name = pointer.removeprefix("/").rpartition("/")
    return name in Options.model_fields if parent == "options" else True


def _is_needless(pointer: str, settings: Mapping[str, Any]) -> bool:
    """Whether the report is the same without a field: it is a name, or an option that is not set."""
    parent, _, name = pointer.removeprefix("/").rpartition("/")
    if parent == "options":
        return bool(settings["options"].get(name) == Options().model_dump(mode="json")[name])
    return not parent and name in _NAMES


def _version(session: Session, deadline: Deadline) -> Flow[str | None]:
    """Ask for the server's version; None if it does not say."""
    try:
        reply = yield from request(session, Send("GET", "/v1/capabilities"), deadline)
        return str(reply.json()["engine"]["version"])
    except (ClientError, ValueError, KeyError, TypeError):
        return None
