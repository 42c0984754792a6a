"""The digest that identifies a model: of its file, or of its file and its data files.

A model without external data has the SHA-256 of its file. Otherwise the digest is the SHA-256 of the manifest, a text
of one line ``name size sha256`` per file: the model's own file first, under the name ``model`` whatever it is called on
disk, then the data files under the names by which the model refers to them, sorted by the bytes of these names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import NamedTuple


class File(NamedTuple):
    """What identifies the content of a file."""

    size: int
    """Bytes."""
    sha256: str
    """64 lower-case hexadecimal digits."""


def manifest(model: tuple[int, str], parts: Mapping[str, tuple[int, str]]) -> bytes:
    """Return the manifest of a model with external data.

    Args:
        model: Size and SHA-256 (hex) of the model's own file.
        parts: Name → size and SHA-256 (hex) of each data file. A name may contain spaces, but no line break: with
            sizes and digests of a fixed form, different files have different manifests.

    Raises:
        ValueError: If a name is empty or contains a line break.
    """
    for name in parts:
        if not name or "\n" in name or "\r" in name:
            raise ValueError(f"{name!r} can't name a data file")
    ordered = sorted(parts.items(), key=lambda entry: entry[0].encode())
    lines = [("model", model), *ordered]
    return "".join(f"{name} {size} {sha256}\n" for name, (size, sha256) in lines).encode()


def model_digest(model: tuple[int, str], parts: Mapping[str, tuple[int, str]]) -> str:
    """Return the SHA-256 (hex) that identifies a model: of the manifest, or without parts of its one file."""
    return hashlib.sha256(manifest(model, parts)).hexdigest() if parts else model[1]
