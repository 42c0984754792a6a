"""What kind of batch a file is, told from its outside."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from service.blobs.repository import TruncatedFileError, UnknownFormatError
from service.storage.archives import NotAnArchiveError, member_names

_ACCEPTED = "Accepted are .npz files (numpy.savez) and .safetensors files, with arrays x and y."
_MAX_SAFETENSORS_HEADER = 100_000_000


def batch_format(path: Path) -> Literal["npz", "safetensors"]:
    """The format of a batch file.

    Raises:
        UnknownFormatError: when it is neither .npz nor .safetensors.
        TruncatedFileError: when it begins as one of them and ends too early.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(9)
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _archive_format(path)
    header_size = int.from_bytes(start[:8], "little")
    if len(start) == 9 and start[8:] == b"{" and header_size <= _MAX_SAFETENSORS_HEADER:
        if 8 + header_size > size:
            raise TruncatedFileError(
                "The .safetensors file ends within its header.", advice="Upload the whole file again."
            )
        return "safetensors"
    raise UnknownFormatError("The batch is neither an .npz nor a .safetensors file.", advice=_ACCEPTED)


def _archive_format(path: Path) -> Literal["npz"]:
    try:
        names = member_names(path)
    except NotAnArchiveError as error:
        raise TruncatedFileError(
            f"The batch begins as a zip archive, but has {error}.", advice="Upload the whole file again."
        ) from error
    if not names or not all(name.endswith(".npy") for name in names):
        raise UnknownFormatError("The batch is a zip archive with members that are no .npy arrays.", advice=_ACCEPTED)
    return "npz"
