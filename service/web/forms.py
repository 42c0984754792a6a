"""The form that asks for an analysis: from its fields to a queued analysis, or to what is wrong with which field."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from uuid import UUID

from fastapi import Request
from pydantic import ValidationError

from service.analyses.errors import AnalysisNotFoundError, DeviceUnavailableError, NoReportError, ReportNotReadyError
from service.analyses.schemas import FormRequest
from service.analyses.submission import Caller, accept
from service.blobs.formats import batch_format, model_format
from service.blobs.repository import NOUNS, BlobNotFoundError, digest, identifier, register, sniff
from service.context import Context
from service.errors import ServiceError
from service.fields import FieldError, field_errors
from service.http.multipart import InvalidFormError, LimitedWriter, Writer, read_form
from service.policies import PolicyError
from service.policies.policy import parse_toml
from service.storage.store import Kind, Upload
from service.web.browsers import check_csrf
from service.web.sessions import Session
from wsb_engine.options import Options

MAX_FIELD_BYTES = 1 << 16
"""Size of a field that was typed; a policy is the longest."""

FILES: dict[str, Kind] = {"model": "models", "batch": "batches"}

_KEPT = {"model_id": "model", "batch_id": "batch"}
_PLAIN = ("priority", "timeout_s", "baseline")
_FIELDS = frozenset(
    {"csrf", *FILES, *_KEPT, *Options.model_fields, "labels", "policy", "fresh", *_PLAIN},
)
_READERS = {"models": model_format, "batches": batch_format}


@dataclass
class Filled:
    """A form as it was filled in, by field, and what is wrong with it."""

    values: dict[str, str]
    errors: dict[str, str] = field(default_factory=dict)
    """By field; under the empty name what is wrong with the whole."""
    status: int = HTTPStatus(422)

    def refuse(self, name: str, text: str) -> None:
        self.errors.setdefault(name if name in _FIELDS else "", text)

    def refuse_for(self, error: ServiceError, name: str = "") -> None:
        """Says what a problem says, at the fields that it names or else at this one."""
        self.status = error.status
        for item in error.errors:
            self.refuse(item.pointer.strip("/").split("/")[-1], item.detail)
        if not error.errors:
            self.refuse(name, " ".join(filter(None, (error.detail, error.advice))))


def empty_form() -> Filled:
    """The form before anything is typed: the engine's own defaults."""
    values = {name: _written(option.default) for name, option in Options.model_fields.items()}
    return Filled({**values, "priority": "0"})


async def submit_form(request: Request, context: Context, tenant: str, session: Session | None) -> UUID | Filled:
    """The analysis, or the form with what is wrong in it; files that can be read are kept either way.

    Raises:
        CrossSiteError: before any file is stored, when the form is none of this session's.
        ServiceError: for what is nobody's mistake in the form.
    """
    with ExitStack() as stack:
        parts = _Parts(context, session, stack)
        filled = Filled(parts.values)
        try:
            await read_form(request, parts.limit, parts.open)
        except ServiceError as error:
            if parts.open_file is None or parts.values.get("csrf") is None:
                raise
            parts.decode()
            filled.refuse_for(error, parts.open_file)
            return filled
        parts.decode()
        return await _submitted(context, tenant, parts, filled)


class _Typed:
    """A field's bytes, few of them."""

    def __init__(self) -> None:
        self.content = bytearray()

    def write(self, data: bytes) -> None:
        self.content += data


class _Parts:
    """The parts of the form as they come in: the token first, files to disk."""

    def __init__(self, context: Context, session: Session | None, stack: ExitStack) -> None:
        settings = context.settings
        self.values: dict[str, str] = {}
        self.uploads: dict[str, Upload] = {}
        self.open_file: str | None = None
        self._typed: dict[str, _Typed] = {}
        self._context = context
        self._session = session
        self._stack = stack
        self._limits = {"model": settings.max_model_bytes, "batch": settings.max_batch_bytes}
        self.limit = sum(self._limits.values()) + len(_FIELDS) * MAX_FIELD_BYTES

    def open(self, name: str) -> Writer:
        if name not in _FIELDS:
            raise InvalidFormError(f"There is a field {name[:80]!r}.", code="unexpected_part")
        if name != "csrf":
            self._check()
        self.open_file = name if name in FILES else None
        if name in FILES:
            self.uploads[name] = self._stack.enter_context(self._context.blobs.receive(FILES[name]))
            return LimitedWriter(self.uploads[name], self._limits[name], NOUNS[FILES[name]])
        self._typed[name] = _Typed()
        return LimitedWriter(self._typed[name], MAX_FIELD_BYTES, f"field {name}")

    def decode(self) -> None:
        """Makes text of what has come in."""
        for name, typed in self._typed.items():
            self.values[name] = typed.content.decode("utf-8", errors="replace").replace("\r\n", "\n").strip()

    def _check(self) -> None:
        if "csrf" not in self.values:
            self.decode()
            check_csrf(self._session, self.values.setdefault("csrf", ""))


async def _submitted(context: Context, tenant: str, parts: _Parts, filled: Filled) -> UUID | Filled:
    # Files first, whatever becomes of the rest: they need not be sent again.
    await _keep(context, tenant, parts, filled)
    wanted = _request(filled)
    if wanted is None or filled.errors:
        return filled
    try:
        return (await accept(context, Caller(tenant), wanted, {})).analysis
    except DeviceUnavailableError as error:
        filled.refuse_for(error, "device")
    except BlobNotFoundError as error:
        # One that the form had from before, and that has been deleted since.
        filled.values |= dict.fromkeys(_KEPT, "")
        filled.refuse_for(error)
    except (AnalysisNotFoundError, ReportNotReadyError, NoReportError) as error:
        filled.refuse_for(error, "baseline")
    except ServiceError as error:
        filled.refuse_for(error)
    return filled


async def _keep(context: Context, tenant: str, parts: _Parts, filled: Filled) -> None:
    """Stores the files that were sent; one that is here from before takes the place of a missing one."""
    for name, kind in FILES.items():
        upload = parts.uploads.get(name)
        if upload is None or upload.size == 0:
            if not filled.values.get(f"{name}_id"):
                filled.refuse(name, f"Choose a {name}.")
            continue
        try:
            format_name = await sniff(upload, _READERS[kind])
            async with context.database.transaction() as session:
                await register(session, context, tenant, upload, format_name)
        except ServiceError as error:
            filled.refuse_for(error, name)
        else:
            filled.values[f"{name}_id"] = identifier(upload.sha256)


def _request(filled: Filled) -> FormRequest | None:
    """The fields as the interface's request, which says what is wrong with them."""
    values = filled.values
    options: dict[str, Any] = {name: values[name] for name in Options.model_fields if values.get(name)}
    # Browsers leave a switch out when it is off.
    options |= {name: name in values for name in ("enclosure", "density")}
    if "parameters" in options:
        options["parameters"] = values["parameters"].split()
    document: dict[str, Any] = {name: values[name] for name in _PLAIN if values.get(name)}
    document |= {file: values[name] for name, file in _KEPT.items() if values.get(name)}
    document |= {"options": options, "labels": _labels(filled), "fresh": "fresh" in values}
    if values.get("policy"):
        try:
            document["policy"] = parse_toml(values["policy"].encode())
        except PolicyError as error:
            filled.refuse("policy", str(error))
    try:
        return FormRequest.model_validate(document)
    except ValidationError as error:
        for item in field_errors(error):
            filled.refuse(*_located(item))
    return None


def _labels(filled: Filled) -> dict[str, str]:
    labels: dict[str, str] = {}
    for line in filter(None, map(str.strip, filled.values.get("labels", "").split("\n"))):
        name, colon, value = line.partition(":")
        if not colon:
            filled.refuse("labels", f"Each line is name: value, and {line[:80]!r} has no colon.")
        labels[name.strip()] = value.strip()
    return labels


def _located(error: FieldError) -> tuple[str, str]:
    """The field that an error is about, and what to say there."""
    place = [part for part in error.pointer.split("/") if part]
    if len(place) > 1 and place[0] == "labels":
        return "labels", f"{place[1]}: {error.detail}"
    name = place[1] if len(place) > 1 and place[0] == "options" else place[0] if place else "policy"
    return name, error.detail


def kept(values: Mapping[str, str]) -> dict[str, str]:
    """Identifiers, by file, of files that the form has from before, where they look like such."""
    found = {}
    for name, file in _KEPT.items():
        if text := values.get(name):
            try:
                found[file] = identifier(digest(text, FILES[file]))
            except BlobNotFoundError:
                continue
    return found


def _written(default: object) -> str:
    """A default as one would type it; an empty text for a switch that is off."""
    if isinstance(default, bool):
        return "on" if default else ""
    if isinstance(default, tuple):
        return " ".join(default)
    return "" if default is None else str(default)
