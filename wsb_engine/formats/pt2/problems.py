"""Errors that only a PyTorch 2 archive can cause, and the advice that fits one."""

from __future__ import annotations

from functools import partial
from typing import Any

from wsb_engine.errors import ModelError
from wsb_engine.formats.commands import SAVE_PT2, TO_ONNX
from wsb_engine.formats.graph import problems

SAVE_AGAIN = f"Save the program again: {SAVE_PT2}, and copy or upload the whole file."

invalid = partial(problems.invalid, advice=SAVE_AGAIN)
"""The error for a file that is not as torch.export.save writes it."""
limit = problems.limit


def too_large(what: str, found: int, most: int) -> ModelError:
    """Return the error for a member or tensor of too many bytes; nothing has been unpacked."""
    return ModelError(
        f"{what} has {found} bytes, more than the limit of {most}",
        code="model_too_large",
        advice="Save the classifier alone, uncompressed, as torch.export.save does.",
        found=found,
        limit=most,
    )


def refused(what: str, advice: str, **details: Any) -> ModelError:
    """Return the error for content that can only be read by running code from the file."""
    return ModelError(
        f"the PyTorch 2 archive holds {what}, which runs code when it is loaded",
        code="pt2_refused",
        advice=advice,
        **details,
    )


def training(label: str, **details: Any) -> ModelError:
    """Return the error for a program exported in training mode."""
    return ModelError(
        f"{label} works as in training: the program was exported in training mode",
        code="pt2_training_mode",
        advice="Call model.eval() before torch.export.export, and save the program again.",
        **details,
    )


def version(found: str, known: int) -> ModelError:
    """Return the error for a schema that the reader does not know."""
    return ModelError(
        f"the program has schema version {found}, and only version {known} is known",
        code="pt2_version_unsupported",
        advice=f"Save the program with torch 2.10 or later. Or: {TO_ONNX}",
        found=found,
        known=known,
    )


def several(names: list[str]) -> ModelError:
    """Return the error for an archive of several programs."""
    return ModelError(
        f"the PyTorch 2 archive holds {len(names)} programs: {', '.join(sorted(names)[:10])[:300]}",
        code="pt2_several_programs",
        advice=f"Save one program alone: {SAVE_PT2}.",
        programs=sorted(names)[:10],
    )
