"""The first rows that a PyTorch DataLoader yields."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wsb_engine.errors import BatchError
from wsb_engine.sources.samples import MAX_BYTES
from wsb_engine.sources.subset import require_rows

LABEL_KEYS = ("labels", "label", "y")
"""Keys of the labels in batches that are mappings; the first that is there counts."""


def read_loader(loader: Iterable[Any], rows: int | None) -> tuple[dict[str, Tensor], Tensor]:
    """Return the inputs by name, and the labels, of the first rows of a loader.

    Args:
        loader: Yields (x, y), (mapping of inputs, y), or mappings that have labels as well.
        rows: Number of rows; None for all that the loader yields.

    Raises:
        BatchError: ``loader_item_unknown``, ``loader_shapes_differ``, ``batch_too_large``, ``empty_batch``,
            ``rows_invalid``, ``too_few_rows``.
    """
    if rows is not None and rows < 1:
        require_rows(0, rows)
    parts: dict[str, list[Tensor]] = {}
    total, size = 0, 0
    for index, item in enumerate(loader):
        tensors = _tensors(item, index)
        count = len(tensors["y"]) if rows is None else min(len(tensors["y"]), rows - total)
        if parts and set(parts) != set(tensors):
            raise _unknown(f"batch {index} has {sorted(tensors)}, the first had {sorted(parts)}")
        for name, tensor in tensors.items():
            first = parts.setdefault(name, [])
            if first and first[0].shape[1:] != tensor.shape[1:]:
                raise BatchError(
                    f"rows of {name!r} have shape {list(tensor.shape[1:])} in batch {index}, "
                    f"{list(first[0].shape[1:])} in the first",
                    code="loader_shapes_differ",
                    advice="Pad or resize all samples to one shape; a tokenizer does so with padding='max_length'.",
                )
            kept = tensor[:count].cpu().clone()  # without the memory of the rows that are not kept
            first.append(kept)
            size += kept.numel() * kept.element_size()
        if size > MAX_BYTES:
            raise BatchError(
                f"{total + count:,} rows are more than the limit of {MAX_BYTES:,} bytes",
                code="batch_too_large",
                advice="Take fewer rows.",
                limit=MAX_BYTES,
            )
        total += count
        if rows is not None and total >= rows:
            break
    if not parts:
        raise BatchError("the loader yields nothing", code="empty_batch", advice="Check the dataset behind it.")
    if rows is not None:
        require_rows(total, rows)
    joined = {name: torch.cat(tensors) for name, tensors in parts.items()}
    y = joined.pop("y")
    return joined, y


def _tensors(item: Any, index: int) -> dict[str, Tensor]:
    """Return the tensors of one batch, the labels as y."""
    if isinstance(item, Mapping):
        inputs = dict(item)
        key = next((key for key in LABEL_KEYS if key in inputs), None)
        if key is None:
            raise _unknown(f"batch {index} has the keys {sorted(map(str, inputs))}, and no labels")
        y = inputs.pop(key)
    elif isinstance(item, list | tuple) and len(item) == 2:
        x, y = item
        inputs = dict(x) if isinstance(x, Mapping) else {"x": x}
    else:
        what = f"a {type(item).__name__}" + (f" of {len(item)}" if isinstance(item, list | tuple) else "")
        raise _unknown(f"batch {index} is {what}")
    tensors = {str(name): _tensor(str(name), value, index) for name, value in inputs.items()}
    if not tensors:
        raise _unknown(f"batch {index} has no inputs")
    if "y" in tensors:
        raise _unknown(f"batch {index} has an input 'y' next to its labels")
    tensors["y"] = labels = _tensor("y", y, index)
    for name, tensor in tensors.items():
        if tensor.ndim == 0 or tensor.shape[:1] != labels.shape[:1]:
            raise _unknown(f"{name!r} in batch {index} has shape {list(tensor.shape)}, without one row for each sample")
    return tensors


def _tensor(name: str, value: Any, index: int) -> Tensor:
    if not isinstance(value, Tensor):
        array = np.asarray(value)
        if array.dtype.kind not in "biuf":
            raise _unknown(f"{name!r} in batch {index} is a {type(value).__name__}, not numbers")
        return torch.from_numpy(array.copy())
    return value.detach()


def _unknown(found: str) -> BatchError:
    return BatchError(
        found,
        code="loader_item_unknown",
        advice="Give a loader of pairs (x, y), or of mappings with the model's inputs and labels; a Dataset needs"
        " torch.utils.data.DataLoader around it.",
    )
