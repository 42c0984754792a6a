"""Tells file formats apart from their first bytes and outermost structure: without torch, in bounded work."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal

from wsb_engine.errors import BatchError, ModelError, OptionsError
from wsb_engine.formats import foreign
from wsb_engine.formats.archives import NotAnArchiveError, member_names
from wsb_engine.formats.commands import SAVE_PT2, TO_ONNX

ModelFormat = Literal["onnx", "pt2", "torchscript"]
BatchFormat = Literal["npz", "safetensors"]

SAFETENSORS_HEADER_BYTES = 100_000_000
"""Largest header of a safetensors file, which is the library's own limit."""
TOP_LEVEL_FIELDS = 20_000
"""Largest number of fields of the outermost message that are looked at; exporters write one for each function."""

_MODEL_FIELDS = {1: 0, 2: 2, 3: 2, 4: 2, 5: 0, 6: 2, 7: 2, 8: 2, 14: 2, 20: 2, 25: 2, 26: 2}
"""Field number → wire type of onnx.ModelProto: 0 is a varint, 2 is length-delimited."""
_GRAPH, _OPSET_IMPORT = 7, 8
_VARINT_BYTES = 10
_ZIP = b"PK\x03\x04"
_EMPTY_ZIP = b"PK\x05\x06"
_AGAIN = "Copy or upload the whole file again."
_PT2_ADVICE = f"Save the program with torch 2.10 or later: {SAVE_PT2}. Or: {TO_ONNX}"
_MODEL_ADVICE = (
    "Give an ONNX file (torch.onnx.export, tf2onnx, skl2onnx), a PyTorch 2 archive (torch.export.save), or a "
    "TorchScript archive (torch.jit.save)."
)


def model_format(source: bytes | Path) -> ModelFormat:
    """Tell the format of a model file.

    Args:
        source: The file, or its bytes.

    Raises:
        ModelError: ``model_empty``, ``model_unrecognized``, ``model_truncated``, ``model_invalid``,
            ``model_too_complex``, ``arguments_swapped``, ``pickle_refused`` or ``pt2_refused``. Details have
            ``truncated`` if the file ends too early.
    """
    with _opened(source) as file:
        size, head = file.seek(0, os.SEEK_END), _head(file)
        if not size:
            raise ModelError("the model file is empty", code="model_empty", advice="Check how the file was written.")
        if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
            raise foreign.pickled_model(foreign.peek(file))
        if head[:4] == _ZIP:
            return _archive_format(file)
        if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < size:
            raise foreign.weights_model(foreign.peek(file))
        other = foreign.other_model(foreign.peek(file))
        if other is not None:
            raise other
        require_onnx(file, size)
        return "onnx"


def state_format(source: bytes | Path) -> Literal["safetensors"]:
    """Tell that a file may be the state of an optimizer.

    Raises:
        OptionsError: ``optimizer_state_invalid`` if it is no .safetensors file. Details have ``truncated`` if it ends
            too early.
    """
    with _opened(source) as file:
        size, head = file.seek(0, os.SEEK_END), _head(file)
    length = int.from_bytes(head[:8], "little")
    advice = "Save the state with safetensors, as the guide to the API shows."
    if head[8:9] != b"{" or not 2 <= length <= SAFETENSORS_HEADER_BYTES:
        raise OptionsError(
            "the optimizer's state is no .safetensors file", code="optimizer_state_invalid", advice=advice
        )
    if 8 + length > size:
        raise OptionsError(
            "the optimizer's state ends within its header",
            code="optimizer_state_invalid",
            advice=advice,
            truncated=True,
        )
    return "safetensors"


def batch_format(source: bytes | Path) -> BatchFormat:
    """Tell the format of a batch file.

    Args:
        source: The file, or its bytes.

    Raises:
        BatchError: ``batch_empty_file``, ``batch_unrecognized``, ``batch_invalid``, ``arguments_swapped`` or
            ``pickle_refused``. Details have ``truncated`` if the file ends too early.
    """
    with _opened(source) as file:
        size, head = file.seek(0, os.SEEK_END), _head(file)
        if not size:
            raise BatchError(
                "the batch file is empty", code="batch_empty_file", advice="Write the file again and check its size."
            )
        if head[:4] in (_ZIP, _EMPTY_ZIP):
            _require_npz(file, source)
            return "npz"
        length = int.from_bytes(head[:8], "little")
        if head[8:9] == b"{" and 2 <= length <= SAFETENSORS_HEADER_BYTES:
            if 8 + length > size:
                raise _cut_batch("the .safetensors file ends within its header")
            return "safetensors"
        if _is_model(source):
            raise foreign.swapped_batch()
        raise foreign.other_batch(foreign.peek(file))


def _is_model(source: bytes | Path) -> bool:
    try:
        model_format(source)
    except ModelError:
        return False
    return True


@contextmanager
def _opened(source: bytes | Path) -> Iterator[BinaryIO]:
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        yield file


def _head(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read(16)


def _archive_format(file: BinaryIO) -> ModelFormat:
    try:
        names = member_names(file)
    except NotAnArchiveError as error:
        raise ModelError(
            f"the file is a damaged or truncated zip archive: {error}",
            code="model_unrecognized",
            advice=_AGAIN,
            truncated=True,
        ) from error
    inner = {name.partition("/")[2] for name in names}
    members = inner | set(names)
    if any(name.startswith("models/") for name in inner):
        return "pt2"
    if "archive_format" in members or any(name.endswith("exported_program.json") for name in members):
        what = "compiled code alone" if any("aotinductor/" in name for name in names) else "weights as a pickle"
        raise ModelError(
            f"the file is a PyTorch 2 archive with {what}, which runs code when it is loaded",
            code="pt2_refused",
            advice=_PT2_ADVICE,
        )
    if "constants.pkl" in members or "bytecode.pkl" in members:
        return "torchscript"
    other = foreign.archived_model(names, foreign.peek(file))
    if other is not None:
        raise other
    raise ModelError(
        "the file is a zip archive, but neither a PyTorch 2 nor a TorchScript one, not a model that can be read",
        code="model_unrecognized",
        advice="Give the model file itself.",
    )


def _require_npz(file: BinaryIO, source: bytes | Path) -> None:
    try:
        names = member_names(file)
    except NotAnArchiveError as error:
        raise _cut_batch(f"the file begins as a zip archive, but has {error}") from error
    if not names or not all(name.endswith(".npy") for name in names):
        if _is_model(source):
            raise foreign.swapped_batch()
        if any(name.endswith("data.pkl") for name in names):
            raise foreign.other_batch(b"", pickled=True)
        raise BatchError(
            "the file is a zip archive with members that are no .npy arrays",
            code="batch_unrecognized",
            advice="Send .npz (numpy.savez('batch.npz', x=x, y=y)) or .safetensors.",
        )


def require_onnx(file: BinaryIO | io.FileIO, size: int) -> None:
    """Walk the fields of the outermost message, stepping over their contents."""
    position, seen = 0, list[int]()
    while position < size:
        if len(seen) >= TOP_LEVEL_FIELDS:
            raise _too_many_fields() if _GRAPH in seen else _no_model()
        file.seek(position)
        head = file.read(2 * _VARINT_BYTES)
        tag, tag_bytes = _varint(head, 0)
        value, value_bytes = _varint(head, tag_bytes)
        if tag_bytes and _MODEL_FIELDS.get(tag >> 3) != tag & 7:
            raise _invalid_model(f"field {tag >> 3} does not belong to an ONNX model") if len(seen) > 1 else _no_model()
        if not tag_bytes or not value_bytes:
            raise _cut_model(size) if seen else _no_model()
        position += tag_bytes + value_bytes + (value if tag & 7 == 2 else 0)
        if position > size:
            raise _cut_model(size, position) if seen else _no_model()
        seen.append(tag >> 3)
    for number, what in ((_GRAPH, "graph"), (_OPSET_IMPORT, "opset")):
        if number not in seen:
            raise _invalid_model(f"the file has no {what}; it may be cut short") if len(seen) > 1 else _no_model()


def _varint(data: bytes, start: int) -> tuple[int, int]:
    """(value, bytes used); no bytes are used if there is no varint."""
    value = 0
    for index, byte in enumerate(data[start : start + _VARINT_BYTES]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, index + 1
    return 0, 0


def _no_model() -> ModelError:
    return ModelError(
        "the file is neither an ONNX file nor a PyTorch 2 or TorchScript archive",
        code="model_unrecognized",
        advice=_MODEL_ADVICE,
    )


def _too_many_fields() -> ModelError:
    return ModelError(
        f"the ONNX file has more than {TOP_LEVEL_FIELDS:,} fields at its outermost level",
        code="model_too_complex",
        advice="Remove metadata from the model (metadata_props) or inline its functions (onnx.inliner).",
        limit=TOP_LEVEL_FIELDS,
    )


def _invalid_model(message: str) -> ModelError:
    return ModelError(
        message, code="model_invalid", advice="Export the model again, and copy or upload the whole file."
    )


def _cut_model(size: int, needed: int | None = None) -> ModelError:
    more = "" if needed is None else f", {needed - size} bytes before its content does"
    return ModelError(
        f"the ONNX file ends after {size} bytes{more}", code="model_truncated", advice=_AGAIN, size=size, truncated=True
    )


def _cut_batch(message: str) -> BatchError:
    return BatchError(message, code="batch_invalid", advice=_AGAIN, truncated=True)
