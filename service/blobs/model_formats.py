"""What kind of model a file is, told from its outside: nothing in it is parsed further or executed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO, Literal

from service.blobs.repository import TruncatedFileError, UnknownFormatError
from service.storage.archives import NotAnArchiveError, member_names

_ACCEPTED = "Accepted are ONNX files and TorchScript archives (torch.jit.save)."

# Fields of onnx.ModelProto by number with their protobuf wire types (0: varint, 2: length-delimited).
_MODEL_PROTO = {1: 0, 2: 2, 3: 2, 4: 2, 5: 0, 6: 2, 7: 2, 8: 2, 14: 2, 20: 2, 25: 2, 26: 2}
_IR_VERSION, _GRAPH, _OPSET_IMPORT = 1, 7, 8


def model_format(path: Path) -> Literal["onnx", "torchscript"]:
    """The format of a model file.

    Raises:
        UnknownFormatError: when it is neither ONNX nor TorchScript.
        TruncatedFileError: when it begins as one of them and ends too early.
    """
    with path.open("rb") as file:
        start = file.read(4)
        if start == b"PK\x03\x04":
            return _archive_format(path)
        if _is_onnx(file):
            return "onnx"
    raise UnknownFormatError("The model is neither an ONNX file nor a TorchScript archive.", advice=_ACCEPTED)


def _archive_format(path: Path) -> Literal["torchscript"]:
    try:
        names = member_names(path)
    except NotAnArchiveError as error:
        raise TruncatedFileError(
            f"The model begins as a zip archive, but has {error}.", advice="Upload the whole file again."
        ) from error
    parts = {name.split("/", 1)[1] for name in names if "/" in name}
    if "constants.pkl" in parts and any(part.startswith("code/") for part in parts):
        return "torchscript"
    if "data.pkl" in parts:
        raise UnknownFormatError(
            "The model is a pickle written by torch.save, which is never loaded.",
            advice="Export it with torch.onnx.export, or save a scripted module with torch.jit.save.",
        )
    if "archive_format" in parts or any(part.startswith("models/") for part in parts):
        raise UnknownFormatError(
            "The model is an exported program (.pt2), which can't be read safely.", advice="Use torch.onnx.export."
        )
    raise UnknownFormatError("The model is a zip archive, but not a TorchScript one.", advice=_ACCEPTED)


def _is_onnx(file: BinaryIO) -> bool:
    """Walks the fields of the outermost message; the graph is one of them and is stepped over."""
    size = file.seek(0, os.SEEK_END)
    position, seen = 0, set[int]()
    while position < size:
        file.seek(position)
        head = file.read(20)
        tag, length = _varint(head, 0)
        number, wire_type = tag >> 3, tag & 7
        if length == 0 or _MODEL_PROTO.get(number) != wire_type:
            return False
        value, value_length = _varint(head, length)
        if value_length == 0:
            return False
        seen.add(number)
        position += length + value_length + (value if wire_type == 2 else 0)
    if position > size and _IR_VERSION in seen:
        raise TruncatedFileError(
            f"The ONNX file ends {position - size} bytes before its content does.",
            advice="Upload the whole file again.",
        )
    return position == size and seen >= {_GRAPH, _OPSET_IMPORT}


def _varint(data: bytes, start: int) -> tuple[int, int]:
    """(value, bytes used); no bytes used when there is no varint."""
    value = 0
    for index, byte in enumerate(data[start : start + 10]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, index + 1
    return 0, 0
