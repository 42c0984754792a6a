"""Live modules named on the command line, as module:attribute. Their code runs in this process, and only here."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


class UnusableModuleError(Exception):
    """The name leads to no module of torch."""


def live_module(place: str) -> nn.Module:
    """Import a module of torch, or call the function that returns it.

    Args:
        place: ``package.module:attribute``, found as Python finds it in the current folder.

    Raises:
        UnusableModuleError: if there is no such thing, or its code fails.
    """
    from torch import nn

    name, colon, attribute = place.partition(":")
    if not (name and colon and attribute):
        raise UnusableModuleError(f"--compare-with takes module:attribute, such as train:model; got {place!r}.")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = importlib.import_module(name)
        for part in attribute.split("."):
            found = getattr(found, part)
        if not isinstance(found, nn.Module) and callable(found):
            found = found()
    except Exception as error:  # whatever the user's code raises
        raise UnusableModuleError(f"{place} can't be imported: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
    if not isinstance(found, nn.Module):
        raise UnusableModuleError(f"{place} is of type {type(found).__name__}, not a torch.nn.Module.")
    return found
