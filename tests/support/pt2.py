"""PyTorch 2 archives: written by torch, and changed member by member."""

from __future__ import annotations

import io
import json
import warnings
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

FOLDER = "archive"
PROGRAM = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"

Change = bytes | Callable[[bytes], bytes] | None


def exported(
    module: nn.Module, *example: Tensor, free: bool = False, decomposed: bool = False, train: bool = False
) -> bytes:
    """Return what torch.export.save writes.

    Args:
        module: The module; exported in evaluation mode.
        example: Example inputs.
        free: True to leave the number of samples free.
        decomposed: True to run torch's decompositions first.
        train: True to export in training mode.
    """
    shapes = tuple({0: torch.export.Dim("samples", min=2)} for _ in example) if free else None
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(module.train(train), example, dynamic_shapes=shapes)
        program = program.run_decompositions() if decomposed else program
        torch.export.save(program, buffer)
    return buffer.getvalue()


def rewritten(
    archive: bytes, changes: Mapping[str, Change], *, folder: str = FOLDER, compression: int = zipfile.ZIP_STORED
) -> bytes:
    """Return an archive with members changed, added or (None) left out, by their names below the folder."""
    left, buffer = dict(changes), io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(buffer, "w", compression) as new:
        for entry in old.infolist():
            name = entry.filename.partition("/")[2]
            change = left.pop(name, old.read(entry))
            if change is not None:
                new.writestr(f"{folder}/{name}", change(old.read(entry)) if callable(change) else change)
        for name, content in left.items():
            assert isinstance(content, bytes), name
            new.writestr(f"{folder}/{name}", content)
    return buffer.getvalue()


def edited(change: Callable[[Any], object]) -> Callable[[bytes], bytes]:
    """Return the change of a JSON member that a function makes in place."""

    def apply(content: bytes) -> bytes:
        document = json.loads(content)
        change(document)
        return json.dumps(document).encode()

    return apply
