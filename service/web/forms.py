"""The form that asks for an analysis: from its fields to a queued analysis, or to what is wrong with which field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from io import BytesIO
from typing import Any, Literal, get_args, get_origin
from uuid import UUID

from fastapi import Request
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from service.analyses.errors import (
    AnalysisNotFoundError,
    BaselineNotFoundError,
    DeviceUnavailableError,
    NoReportError,
    ReportNotReadyError,
)
from service.analyses.schemas import FormRequest
from service.analyses.submission import Caller, accept, with_state
from service.blobs.errors import BlobNotFoundError
from service.blobs.parts import FILES, MODEL_DATA, STATE, Parts
from service.blobs.repository import Received, digest, identifier, store
from service.context import Context
from service.errors import ServiceError
from service.fields import FieldError, field_errors, is_list
from service.http.multipart import Allowance, LimitedWriter, Writer
from service.policies import PolicyError
from service.policies.policy import parse_toml
from service.web.browsers import check_csrf
from service.web.sessions import Session
from wsb_engine.options import Options

MAX_FIELD_BYTES = 1 << 16
"""Size of a typed field; a policy is the longest."""

_KEPT = {"model_id": "model", "batch_id": "batch"}
"""Fields that name a file sent earlier, and the file that each stands for."""
_FILE_NAMES = {f"{file}_name": file for file in FILES}
"""Fields that say what a file sent earlier is called."""
_PLAIN = ("name", *_FILE_NAMES, "priority", "timeout_s", "baseline")
_TYPED = ("csrf", *_KEPT, *Options.model_fields, "labels", "policy", "fresh", *_PLAIN)
_FILE_FIELDS = (*FILES, MODEL_DATA, STATE)
_FIELDS = frozenset({*_FILE_FIELDS, *_TYPED})


@dataclass(frozen=True)
class OptionField:
    """How the form shows an option of the engine."""

    label: str
    hint: str
    choices: tuple[tuple[str, str], ...]
    """Values to choose from, each with its text; empty if the value is typed."""
    is_switch: bool
    is_list: bool
    """True if several values are typed, separated by white space."""


def _option_field(name: str) -> OptionField:
    option = Options.model_fields[name]
    kind = option.annotation
    return OptionField(
        label=name.replace("_", " ").capitalize(),
        hint=option.description or "",
        choices=tuple((str(value), str(value)) for value in get_args(kind)) if get_origin(kind) is Literal else (),
        is_switch=kind is bool,
        is_list=is_list(kind),
    )


OPTION_FIELDS = {name: _option_field(name) for name in Options.model_fields}


@dataclass
class Filled:
    """A form as it was filled in, by field, and what is wrong with it."""

    values: dict[str, str]
    errors: dict[str, str] = field(default_factory=dict)
    """Messages by field; the empty name has the message about the whole form."""
    status: int = HTTPStatus(422)

    def refuse(self, name: str, text: str) -> None:
        self.errors.setdefault(name if name in _FIELDS else "", text)

    def refuse_for(self, error: ServiceError, name: str = "") -> None:
        """Show a problem at the fields that it names, or else at the field ``name``."""
        self.status = error.status
        for item in error.errors:
            place = item.pointer.strip("/").split("/")
            self.refuse(place[1] if place[0] == "options" and len(place) > 1 else place[-1], item.detail)
        if not error.errors:
            self.refuse(name, " ".join(filter(None, (error.detail, error.advice))))


def empty_form() -> Filled:
    """Return the form before anything is typed, with the engine's defaults."""
    values = {name: _written(option.default) for name, option in Options.model_fields.items()}
    return Filled({**values, "priority": "0"})


async def submit_form(request: Request, context: Context, tenant: str, session: Session | None) -> UUID | Filled:
    """Queue the analysis, or return the form with its errors; readable files are kept either way.

    Raises:
        CrossSiteError: before any file is stored, if the form is not one of this session.
        ServiceError: for a problem that no field of the form can cause.
    """
    with _FormParts(context, session) as parts:
        try:
            await parts.receive(request)
        except ServiceError as error:
            if parts.latest not in _FILE_FIELDS or not parts.is_checked:
                raise
            filled = Filled(parts.values())
            filled.refuse_for(error, parts.latest)
            return filled
        return await _submitted(context, tenant, parts.received(), Filled(parts.values()))


class _FormParts(Parts):
    """The parts of the form as they arrive; the session's token must be the first."""

    def __init__(self, context: Context, session: Session | None) -> None:
        super().__init__(context, dict.fromkeys(_TYPED, MAX_FIELD_BYTES))
        self.latest = ""
        """Name of the part that began last."""
        self.is_checked = False
        """True once the token has been checked."""
        self._session = session

    def open(self, name: str, file_name: str | None) -> Writer:
        if name != "csrf" and not self.is_checked:
            check_csrf(self._session, self.values().get("csrf", ""))
            self.is_checked = True
        if name in _FIELDS:
            self.latest = name
        if name == MODEL_DATA and not file_name:
            # Browsers send an empty part if no file was chosen.
            return LimitedWriter(BytesIO(), Allowance(0, "data file without a name"))
        return super().open(name, file_name)

    def values(self) -> dict[str, str]:
        """Return the typed fields received so far."""
        received = {name: content for name in _TYPED if (content := self.field(name)) is not None}
        return {name: _text(content) for name, content in received.items()}


def _text(content: bytes) -> str:
    return content.decode("utf-8", errors="replace").replace("\r\n", "\n").strip()


async def _submitted(context: Context, tenant: str, files: Mapping[str, Received], filled: Filled) -> UUID | Filled:
    # Files first: even if the rest is refused, they need not be sent again.
    await _keep(context, tenant, files, filled)
    wanted = await run_in_threadpool(_request, filled)
    if wanted is None or filled.errors:
        return filled
    try:
        wanted = await _with_state(context, tenant, files, wanted)
        return (await accept(context, Caller(tenant), wanted, {})).analysis
    except DeviceUnavailableError as error:
        filled.refuse_for(error, "device")
    except BlobNotFoundError as error:
        # The file was sent with an earlier form and has been deleted since.
        filled.values |= dict.fromkeys(_KEPT, "")
        filled.refuse_for(error)
    except (AnalysisNotFoundError, BaselineNotFoundError, ReportNotReadyError, NoReportError) as error:
        filled.refuse_for(error, "baseline")
    except ServiceError as error:
        filled.refuse_for(error)
    return filled


async def _keep(context: Context, tenant: str, files: Mapping[str, Received], filled: Filled) -> None:
    """Store the files that were sent; a file sent with an earlier form stands in for a missing one."""
    for name in FILES:
        received = files.get(name)
        if received is None or received.file.size == 0:
            if received is not None and received.data:
                filled.refuse(MODEL_DATA, "Choose the model together with its data files.")
            if not filled.values.get(f"{name}_id"):
                filled.refuse(name, f"Choose a {name}.")
            continue
        try:
            await store(context, tenant, received)
        except ServiceError as error:
            filled.refuse_for(error, name)
        else:
            filled.values[f"{name}_id"] = identifier(received.sha256)
            filled.values[f"{name}_name"] = received.name or ""


async def _with_state(context: Context, tenant: str, files: Mapping[str, Received], wanted: FormRequest) -> FormRequest:
    """Store the optimizer's state, if one was chosen, and name it in the request."""
    received = files.get(STATE)
    if received is None or received.file.size == 0:
        return wanted
    wanted = with_state(wanted, identifier(received.sha256))
    await store(context, tenant, received)
    return wanted


def _request(filled: Filled) -> FormRequest | None:
    """Convert the fields to a request of the API, whose validation finds the errors."""
    values = filled.values
    options: dict[str, Any] = {name: values[name] for name in OPTION_FIELDS if values.get(name)}
    options |= {name: values[name].split() for name in options if OPTION_FIELDS[name].is_list}
    # Browsers don't send a switch that is off.
    options |= {name: name in values for name, shown in OPTION_FIELDS.items() if shown.is_switch}
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
            filled.refuse("labels", f"Write each line as name: value; {line[:80]!r} has no colon.")
        labels[name.strip()] = value.strip()
    return labels


def _located(error: FieldError) -> tuple[str, str]:
    """Return the field that an error is about, and the message to show there."""
    place = [part for part in error.pointer.split("/") if part]
    if len(place) > 1 and place[0] == "labels":
        return "labels", f"{place[1]}: {error.detail}"
    name = place[1] if len(place) > 1 and place[0] == "options" else place[0] if place else "policy"
    return name, error.detail


def kept(values: Mapping[str, str]) -> dict[str, str]:
    """Return the well-formed identifiers of files sent with an earlier form, by the name of the file."""
    found = {}
    for name, file in _KEPT.items():
        if text := values.get(name):
            try:
                found[file] = identifier(digest(text, FILES[file]))
            except BlobNotFoundError:
                continue
    return found


def _written(default: object) -> str:
    """Write a default as a user would type it; empty for a switch that is off."""
    if isinstance(default, bool):
        return "on" if default else ""
    if isinstance(default, tuple):
        return " ".join(default)
    return "" if default is None else str(default)
