"""Second moments of an optimizer: from a .safetensors file, or from arrays by name.

A file is read tensor by tensor, as they are needed, and nothing of it is executed.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from wsb_engine.errors import OptionsError, first_line

StateSource: TypeAlias = "str | os.PathLike[str] | bytes | Mapping[str, Any]"
"""A path, the content of a file, or arrays by name."""

MAX_STATE_BYTES = 1 << 40
"""Limit on the bytes of a file."""
LARGEST_STEP = 2**53
_LISTED = 10
"""Names that a message lists."""
FORMAT = (
    "Save a .safetensors file with arrays NAME.exp_avg_sq (NAME.max_exp_avg_sq, NAME.square_avg) of each parameter "
    "NAME, and NAME.step, or one step for all."
)


@dataclass(frozen=True)
class OptimizerState:
    """Arrays of an optimizer by name, such as ``0.weight.exp_avg_sq``."""

    names: frozenset[str]
    sha256: str | None
    """Hex digest of the file; None for arrays."""
    _read: Callable[[str], Tensor] = field(repr=False)

    def moments(self, name: str, key: str, like: Tensor) -> Tensor:
        """Return second moments of a parameter, of its shape, (…) float64, finite and not negative.

        Args:
            name: Name of the parameter.
            key: Name that torch gives these moments.
            like: The parameter.

        Raises:
            OptionsError: ``optimizer_state_incomplete``, ``optimizer_state_invalid``.
        """
        found = self._array(f"{name}.{key}")
        if found.shape != like.shape:
            turned = found.ndim == 2 and found.shape == like.T.shape
            raise _invalid(
                f"{name}.{key} has shape {list(found.shape)}, and the parameter {list(like.shape)}",
                "The file of the model holds it transposed: save the moments as the file has the parameter."
                if turned
                else "Save the state of the optimizer that trained this model.",
            )
        found = found.double()
        # One pass; a comparison with NaN is false.
        if not bool(((found >= 0) & (found < math.inf)).all()):
            raise _invalid(
                f"{name}.{key} holds numbers that are negative or not finite",
                "Second moments are means of squares: save the state again.",
            )
        return found

    def step(self, name: str) -> int:
        """Return the number of steps that the optimizer has taken with a parameter.

        Raises:
            OptionsError: ``optimizer_state_incomplete``, ``optimizer_state_invalid``.
        """
        own = f"{name}.step"
        key = own if own in self.names or "step" not in self.names else "step"
        found = self._array(key)
        value = float(found.reshape(-1)[0]) if found.numel() == 1 else math.nan
        if not (1 <= value <= LARGEST_STEP and value == int(value)):
            raise _invalid(
                f"{key} is no number of steps", "It is a whole number from 1, as torch keeps it in its state."
            )
        return int(value)

    def _array(self, name: str) -> Tensor:
        if name not in self.names:
            known = sorted(self.names)
            listed = ", ".join(known[:_LISTED]) + (f" and {len(known) - _LISTED} more" if len(known) > _LISTED else "")
            raise OptionsError(
                f"the optimizer's state has no array {name!r}",
                code="optimizer_state_incomplete",
                advice=f"{FORMAT} Names are those of the model's file. The state has {listed or 'no arrays'}.",
                missing=name,
            )
        found = self._read(name)
        if found.is_complex() or found.dtype == torch.bool:
            raise _invalid(f"{name} has dtype {str(found.dtype).removeprefix('torch.')}", "Save it as float32.")
        return found.detach().cpu()


def read_optimizer_state(source: StateSource) -> OptimizerState:
    """Open a state; its arrays are read when they are asked for.

    Args:
        source: A path or the content of a .safetensors file, or arrays of numpy or torch by name.

    Raises:
        OptionsError: ``optimizer_state_invalid``.
        OSError: if the file can't be read.
    """
    if isinstance(source, Mapping):
        return OptimizerState(frozenset(source), None, lambda name: _tensor(name, source[name]))
    import safetensors
    import safetensors.torch

    content = source if isinstance(source, bytes) else Path(source)
    digest = _digest(content)
    try:
        if isinstance(content, bytes):
            tensors = safetensors.torch.load(content)
            return OptimizerState(frozenset(tensors), digest, tensors.__getitem__)
        file: Any = safetensors.safe_open(str(content), "pt")
        return OptimizerState(frozenset(file.keys()), digest, lambda name: _from_file(file, name))
    except (safetensors.SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise _damaged(error) from error


def _from_file(file: Any, name: str) -> Tensor:
    import safetensors

    try:
        found: Tensor = file.get_tensor(name)
    except (safetensors.SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise _damaged(error) from error
    return found


def _digest(content: bytes | Path) -> str:
    with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as file:
        if file.seek(0, os.SEEK_END) > MAX_STATE_BYTES:
            raise _invalid(f"the optimizer's state holds more than {MAX_STATE_BYTES:,} bytes", FORMAT)
        file.seek(0)
        return hashlib.file_digest(file, "sha256").hexdigest()


def _tensor(name: str, array: Any) -> Tensor:
    if isinstance(array, Tensor):
        return array
    try:
        return torch.from_numpy(np.array(array))
    except (TypeError, ValueError) as error:
        raise _invalid(f"{name} is no array of numbers: {first_line(error)}", FORMAT) from error


def _damaged(error: BaseException) -> OptionsError:
    return _invalid(f"the optimizer's state can't be read: {first_line(error)}", FORMAT)


def _invalid(message: str, advice: str) -> OptionsError:
    return OptionsError(message, code="optimizer_state_invalid", advice=advice)
