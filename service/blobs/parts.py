"""Multipart bodies that bring models and batches: files are stored as they arrive, short fields stay in memory."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from io import BytesIO
from pathlib import PurePosixPath
from typing import Any, Self

from fastapi import Request

from service.blobs.repository import Received, max_bytes
from service.blobs.table import NOUNS
from service.context import Context
from service.http.multipart import Allowance, InvalidFormError, LimitedWriter, Writer, read_form
from service.kit.file_names import shown_file_name
from service.storage.store import Kind, Upload
from wsb_engine.formats.commands import EXPORT_WITH_DATA

KINDS: dict[str, Kind] = {noun: kind for kind, noun in NOUNS.items()}
"""Kind of the file in a part, by the part's name."""
STATE = "optimizer_state"
"""Name of the part with the state of an optimizer, which few analyses need."""
FILES = {noun: kind for noun, kind in KINDS.items() if noun != STATE}
"""The same of the files that every analysis needs."""
MODEL_DATA = "model_data"
"""Name of the parts with a model's data files (external data), which may repeat."""

_BINARY = {"type": "string", "format": "binary"}
PART_SCHEMAS: dict[str, dict[str, Any]] = {
    "model": {**_BINARY, "description": "ONNX file, PyTorch 2 archive or TorchScript archive."},
    MODEL_DATA: {
        "type": "array",
        "items": _BINARY,
        "description": "Data files of the model (external data), such as model.onnx.data, each in a part of this name."
        " The part's file name is the name by which the model refers to the file.",
    },
    "batch": {**_BINARY, "description": ".npz or .safetensors file with arrays x and y."},
    STATE: {
        **_BINARY,
        "description": ".safetensors file with the second moments of the optimizer that the option optimizer names.",
    },
}
"""JSON schemas of the parts with files, for OpenAPI."""

_NAME_BYTES = 255
_PLAIN = re.compile(r"[^\x00-\x1f\x7f\\\ufffd]+")
"""No control characters, no separators of Windows, and nothing that was not UTF-8."""
_ROOM_FOR_PART = 1 << 10
"""Bytes of a data file's part besides its content, on average."""


class Parts:
    """The parts of one multipart body; a context manager, which deletes every upload that was not kept.

    Args:
        context: Context of the request.
        fields: Limit in bytes of each part that is not a file, by its name.
        files: Names of the parts that are files; with ``model``, its data files are accepted too.
        advice: What to send instead of a part that is not expected.
    """

    def __init__(
        self,
        context: Context,
        fields: Mapping[str, int],
        *,
        files: Collection[str] = tuple(KINDS),
        advice: str | None = None,
    ) -> None:
        self._context = context
        self._advice = advice
        self._limits = {**fields, **{name: max_bytes(context.settings, KINDS[name]) for name in files}}
        self._whole_model = Allowance(context.settings.whole_model_bytes, "model with its data files")
        self._fields: dict[str, BytesIO] = {}
        self._files: dict[str, Upload] = {}
        self._names: dict[str, str | None] = {}
        """Names of the files to show, by the name of their part."""
        self._data: dict[str, Upload] = {}
        """Data files by file name."""
        self._latest: Upload | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    async def receive(self, request: Request) -> None:
        """Receive the whole body.

        Raises:
            ServiceError: as ``read_form``, and for a part that is not expected, is repeated, has a file name that can't
                be used, or is too large.
        """
        settings, limit = self._context.settings, sum(self._limits.values())
        if "model" in self._limits:
            data = settings.max_model_data_files * (settings.max_model_bytes + _ROOM_FOR_PART)
            limit += min(data, settings.whole_model_bytes)
        await read_form(request, limit, self.open)
        folders = {str(parent) for name in self._data for parent in PurePosixPath(name).parents}
        if both := folders & self._data.keys():
            raise InvalidFormError(
                f"The data file {min(both)!r} is also the folder of another.", code="invalid_file_name"
            )
        if self._data and "model" not in self._files:
            raise InvalidFormError(
                f"The data file {next(iter(self._data))!r} was sent without its model.",
                code="missing_part",
                advice="Send the model in the same request: curl -F model=@FILE -F model_data=@DATA_FILE.",
            )

    def received(self) -> dict[str, Received]:
        """Return the files, by the name of their part."""
        return {
            part: Received(upload, self._data if part == "model" else {}, self._names[part])
            for part, upload in self._files.items()
        }

    def open(self, name: str, file_name: str | None) -> Writer:
        """Return the writer for a part; called as the part begins."""
        if name == MODEL_DATA and "model" in self._limits:
            return self._open_data(file_name)
        if name not in self._limits:
            raise InvalidFormError(
                f"The part {name[:80]!r} is not expected.", code="unexpected_part", advice=self._advice
            )
        if name in self._files or name in self._fields:
            raise InvalidFormError(f"The part {name[:80]!r} is repeated.", code="duplicate_part")
        if name not in KINDS:
            field = self._fields[name] = BytesIO()
            return LimitedWriter(field, Allowance(self._limits[name], f"{name} part"))
        upload = self._files[name] = self._upload(KINDS[name])
        self._names[name] = shown_file_name(file_name)
        shared = (self._whole_model,) if name == "model" else ()
        return LimitedWriter(upload, Allowance(self._limits[name], name), *shared)

    def field(self, name: str) -> bytes | None:
        """Return the content of a part that is not a file; None if it was not sent."""
        field = self._fields.get(name)
        return None if field is None else field.getvalue()

    def _open_data(self, file_name: str | None) -> Writer:
        name, most = _checked(file_name), self._context.settings.max_model_data_files
        if name in self._data:
            raise InvalidFormError(f"The data file {name!r} is repeated.", code="duplicate_part")
        if len(self._data) >= most:
            raise InvalidFormError(
                f"The model has more than {most} data files.",
                code="too_many_parts",
                advice=f"Export the model with one data file: {EXPORT_WITH_DATA}.",
            )
        upload = self._data[name] = self._upload("models")
        what = f"data file {name!r}"
        return LimitedWriter(upload, Allowance(self._context.settings.max_model_bytes, what), self._whole_model)

    def _upload(self, kind: Kind) -> Upload:
        """Start an upload; the previous one is complete."""
        if self._latest is not None:
            self._latest.close()
        self._latest = self._stack.enter_context(self._context.blobs.receive(kind))
        return self._latest


def missing_part(name: str) -> InvalidFormError:
    """Return the error of a body without a file that it needs."""
    return InvalidFormError(
        f"The part {name!r} is missing.", code="missing_part", advice=f"Send the file: curl -F {name}=@FILE."
    )


def _checked(file_name: str | None) -> str:
    """Return the name of a data file if it is a plain relative path.

    Raises:
        InvalidFormError: ``invalid_file_name`` if it is not, or there is none.
    """
    name = file_name or ""
    plain = _PLAIN.fullmatch(name) and not {"", ".", ".."} & set(name.split("/"))
    if plain and len(name.encode()) <= _NAME_BYTES:
        return name
    raise InvalidFormError(
        f"A data file can't be called {name[:80]!r}." if name else "A data file has no file name.",
        code="invalid_file_name",
        advice="Use the name by which the model refers to it, a relative path without '..' and of at most "
        f"{_NAME_BYTES} bytes: curl -F 'model_data=@FILE;filename=model.onnx.data'.",
    )
