"""Folders that ``datasets`` of Hugging Face saved with ``save_to_disk``; nothing in them is executed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsb_engine.errors import BatchError, first_line
from wsb_engine.sources.arrays import class_numbers
from wsb_engine.sources.images import Pixels, require_pillow, stacked
from wsb_engine.sources.samples import ProgressSink, Samples, require_room
from wsb_engine.sources.subset import strata_of, stratified

_SHOWN = 20


def read_dataset(
    folder: Path,
    *,
    x: Sequence[str],
    y: str,
    split: str | None = None,
    pixels: Pixels,
    classes: Sequence[str] | None = None,
    keep_labels: bool = False,
    rows: int | None = None,
    seed: int = 0,
    progress: ProgressSink,
) -> Samples:
    """Read columns of a dataset on disk; one column is called x, several keep their names.

    Args:
        folder: The folder.
        x: Columns with the inputs: numbers, lists of one length, or images.
        y: Column with the labels.
        split: Name of the split, if the folder holds several.
        pixels: How images become arrays.
        classes: Names of all classes in logit order; None for those of the dataset.
        keep_labels: True to keep labels as text.
        rows: Rows of a random stratified subset; None for all.
        seed: Seed of the subset.
        progress: Called with the fraction that is done.

    Raises:
        BatchError: ``datasets_missing``, ``source_not_found``, ``dataset_invalid``, ``split_unknown``,
            ``column_unknown``, ``column_ragged``, and those of ``read_images``.
    """
    try:
        import datasets
    except ImportError as error:
        raise BatchError(
            "Folders of Hugging Face datasets are read by datasets, which is not installed",
            code="datasets_missing",
            advice="pip install datasets",
        ) from error
    if not folder.is_dir():
        raise BatchError(f"{folder} is not a folder", code="source_not_found", advice="Give the path of a folder.")
    try:
        loaded = datasets.load_from_disk(str(folder))
    except Exception as error:  # from Arrow, JSON and the file system
        raise BatchError(
            f"{folder} can't be read: {first_line(error)}",
            code="dataset_invalid",
            advice="Give a folder that dataset.save_to_disk(folder) wrote.",
        ) from error
    table = _split(loaded, split)
    for name in (*x, y):
        if name not in table.column_names:
            raise BatchError(
                f"the dataset has no column {name!r}; it has {', '.join(table.column_names[:_SHOWN])}",
                code="column_unknown",
                advice="Name the columns: --x for the inputs, --y for the labels.",
            )
    labels = _numpy(table, y)
    names = getattr(table.features[y], "names", None) if classes is None else None
    if not keep_labels:
        labels, found = class_numbers(labels, classes)
        names = names if found is None else found
    elif names:
        labels = np.array(names)[labels]
    chosen = stratified(strata_of(labels), rows, seed)
    picked = table.select(chosen)
    arrays = {}
    for name in x:
        of_images = isinstance(table.features[name], datasets.Image)
        arrays[name if len(x) > 1 else "x"] = _column(picked, name, of_images, pixels, progress)
    return Samples(arrays, labels[chosen], None if keep_labels or names is None else tuple(names))


def _split(loaded: Any, split: str | None) -> Any:
    splits = list(loaded) if isinstance(loaded, dict) else []
    if splits and split in splits:
        return loaded[split]
    if splits or split is not None:
        raise BatchError(
            f"the folder holds the splits {', '.join(splits)}" if splits else "the folder holds one dataset, no splits",
            code="split_unknown",
            advice="Choose one with --split." if splits else "Leave --split out.",
        )
    return loaded


def _column(table: Any, name: str, of_images: bool, pixels: Pixels, progress: ProgressSink) -> NDArray[Any]:
    if of_images:
        require_pillow()
        loads = [partial(_image, table, index, name) for index in range(len(table))]
        return stacked(loads, [f"{name} of row {index}" for index in range(len(table))], pixels, progress)
    progress("rows", 0.0)
    if len(table):
        require_room(len(table), max(_numpy(table.select([0]), name).nbytes, 1))
    array = _numpy(table, name)
    if array.dtype.kind not in "biuf":
        raise _ragged(name, array.dtype)
    return array


def _numpy(table: Any, name: str) -> NDArray[Any]:
    """Return a column as an array; the library would round numbers of 64 bits to 32."""
    wide = {"dtype": np.float64} if "float64" in str(table.features[name]) else {}
    try:
        return np.asarray(table.with_format("numpy", columns=[name], **wide)[:][name])
    except ValueError as error:  # rows of different lengths
        raise _ragged(name, first_line(error)) from error


def _ragged(name: str, found: object) -> BatchError:
    return BatchError(
        f"column {name!r} holds {found}, not an array of numbers",
        code="column_ragged",
        advice="Map it to numbers of one shape a row (a tokenizer pads with padding='max_length') and save it again.",
    )


def _image(table: Any, index: int, name: str) -> Any:
    return table[index][name]
