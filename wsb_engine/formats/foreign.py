"""Files that are neither models nor batches, but are often given as one: what they are, and what to do with them.

Only the beginning of a file and the names in an archive are looked at: without torch, in bounded work.
"""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Collection
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from wsb_engine.errors import BatchError, ModelError
from wsb_engine.formats.commands import CONVERT_SKLEARN, TO_ONNX

PEEK_BYTES = 1 << 16
"""Bytes at the beginning of a file that are looked at."""
LISTED_FILES = 1000
"""Entries of a folder that are looked at."""
_LINES = 3
"""Lines of a text that are looked at."""

_KERAS_ADVICE = (
    "Export the model with Keras 3: keras.models.load_model('FILE').export('model.onnx', format='onnx'). If the file "
    "has weights only, build the model and call its load_weights first."
)
_STATE_ADVICE = "Put the weights into the model first: model.load_state_dict(torch.load('FILE')); model.eval(). Then: "
_SKLEARN_ADVICE = f"Load it where you trust it (classifier = joblib.load('FILE')), and convert it: {CONVERT_SKLEARN}."
SWAPPED = "Give the model first and the batch second: wsb analyze MODEL BATCH."
_SAVEZ = "numpy.savez('batch.npz', x=x, y=y)"
_MAGIC = (
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras)"),
    (4, b"TFL3", "a TensorFlow Lite file"),
    (0, b"\x93NUMPY", "a single .npy array"),
    (0, b"PAR1", "a Parquet file"),
    (0, b"ARROW1", "an Arrow file"),
    (0, b"GGUF", "a GGUF file"),
    (0, b"\x89PNG", "an image (PNG)"),
    (0, b"\xff\xd8\xff", "an image (JPEG)"),
    (0, b"\x1f\x8b", "a file compressed with gzip"),
    (0, b"BZh", "a file compressed with bzip2"),
    (0, b"\xfd7zXZ", "a file compressed with xz"),
    (0, b"\x78\x01", "a file compressed with zlib (joblib)"),
    (0, b"\x78\x5e", "a file compressed with zlib (joblib)"),
    (0, b"\x78\x9c", "a file compressed with zlib (joblib)"),
    (0, b"\x78\xda", "a file compressed with zlib (joblib)"),
)
_TEXT = re.compile(r"[^\x00-\x08\x0b\x0c\x0e-\x1f]*")
_GLOBAL = re.compile(rb"c([A-Za-z_][\w.]*)\n(\w+)\n")
_STATE_MODULES = frozenset({b"collections", b"torch", b"torch._utils", b"torch.serialization", b"torch.storage"})
"""Modules of the classes in the pickle of a dictionary of tensors."""


def peek(file: BinaryIO) -> bytes:
    """Return the beginning of a file."""
    file.seek(0)
    return file.read(PEEK_BYTES)


def kind(head: bytes) -> str | None:
    """Return what a file is by its beginning, as a noun phrase; None for what is not known."""
    for offset, magic, name in _MAGIC:
        if head[offset : offset + len(magic)] == magic:
            return name
    try:
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(head)  # a character may be cut at the end
    except UnicodeDecodeError:
        return None
    if not _TEXT.fullmatch(text):
        return None
    if text.lstrip()[:1] in ("{", "["):
        return "a JSON file"
    if text.lstrip()[:1] == "<":
        return "an XML or HTML file"
    lines = [line for line in text.splitlines()[:_LINES] if line]
    separated = any(all(delimiter in line for line in lines) for delimiter in ",;\t")
    return "a CSV file" if len(lines) > 1 and separated else None


def other_model(head: bytes) -> ModelError | None:
    """Return the error for a file that is known not to be a model; None if it may be one."""
    what = kind(head)
    if what is None:
        return None
    if "(Keras)" in what:
        return _no_model(what, _KERAS_ADVICE)
    if "Lite" in what:
        return _no_model(what, "Convert the model that it was made of to ONNX with tf2onnx or keras.Model.export.")
    if "(joblib)" in what or "compressed" in what:
        return _no_model(what, f"If it is a scikit-learn estimator: {_SKLEARN_ADVICE} Else decompress it first.")
    return _no_model(what, f"If it is the batch: {SWAPPED} {TO_ONNX}")


def archived_model(names: Collection[str], head: bytes) -> ModelError | None:
    """Return the error for a zip archive by its members and its beginning; None for one that is not known."""
    members = {name.partition("/")[2] for name in names} | set(names)
    if names and all(name.endswith(".npy") for name in names):
        return (
            _swapped_model(".npz arrays")
            if "y.npy" in members
            else _no_model("an .npz archive of arrays, which has weights but no graph", TO_ONNX)
        )
    if {"config.json", "model.weights.h5"} <= members:
        return _no_model("a Keras model (.keras)", _KERAS_ADVICE)
    return pickled_model(head) if "data.pkl" in members else None


def weights_model(header: bytes) -> ModelError:
    """Return the error for a safetensors file by the beginning of its header."""
    if re.search(rb'"y"\s*:', header):
        return _swapped_model(".safetensors arrays")
    return _no_model(
        "a safetensors file, which has weights but no graph",
        f"{_STATE_ADVICE}{TO_ONNX}".replace("torch.load", "safetensors.torch.load_file"),
    )


def pickled_model(head: bytes) -> ModelError:
    """Return the error for a pickle, which is never loaded, by the names of classes at its beginning."""
    modules = {module for module, _ in _GLOBAL.findall(head)}
    what, advice = "a Python pickle (torch.save, joblib)", f"{TO_ONNX} For scikit-learn: {CONVERT_SKLEARN}."
    if b"sklearn" in head:
        what, advice = "a pickled scikit-learn estimator", _SKLEARN_ADVICE
    elif b"torch._utils" in modules and modules <= _STATE_MODULES:
        what, advice = "a state_dict (torch.save), which has weights but no graph", f"{_STATE_ADVICE}{TO_ONNX}"
    elif modules & {b"torch._utils", b"torch.nn.modules.container"} or any(m.startswith(b"torch.nn") for m in modules):
        what = "a pickled torch module (torch.save)"
        advice = f"Load it where you trust it: model = torch.load('FILE', weights_only=False).eval(). {TO_ONNX}"
    return ModelError(f"the file is {what}; a pickle runs code when it is loaded", code="pickle_refused", advice=advice)


def folder_model(path: Path) -> ModelError:
    """Return the error for a folder in place of a model."""
    names = _names(path)
    found = [name for name in names if name.endswith((".onnx", ".pt", ".pt2"))]
    if "saved_model.pb" in names:
        what = "a SavedModel of TensorFlow"
        advice = f"Convert it: python -m tf2onnx.convert --saved-model {path} --output model.onnx."
    elif "config.json" in names and any(name.endswith((".safetensors", ".bin", ".index.json")) for name in names):
        what = "a model of Hugging Face"
        advice = f"Load the model and export it: model = AutoModel….from_pretrained('{path}').eval(). {TO_ONNX}"
    elif found:
        what, advice = "a folder", f"Give the path of a model in it: {', '.join(found[:5])}."
    else:
        what, advice = "a folder", "Give the path of a file that this process may read."
    return ModelError(f"{path} can't be read: it is {what}", code="model_unreadable", advice=advice)


def other_batch(head: bytes, *, pickled: bool = False) -> BatchError:
    """Return the error for a file that is no batch; ``pickled`` for an archive with a pickle in it."""
    if pickled or head[:1] == b"\x80":
        return BatchError(
            "the file is a Python pickle (torch.save), which is never loaded",
            code="pickle_refused",
            advice=f"Load it where you trust it, for example x, y = torch.load('FILE'), and save the arrays: {_SAVEZ}.",
        )
    what = kind(head) or "neither .npz nor .safetensors"
    advice = f"Send .npz ({_SAVEZ}) or .safetensors."
    if what == "a CSV file":
        advice = "Make a batch of it: wsb batch batch.npz --csv FILE --label COLUMN."
    elif "image" in what:
        advice = "Make a batch of a folder with a folder of images for each class: wsb batch batch.npz --images FOLDER."
    elif ".npy" in what:
        advice = "A batch needs x and y: numpy.savez('batch.npz', x=numpy.load('x.npy'), y=numpy.load('y.npy'))."
    return BatchError(f"the file is {what}", code="batch_unrecognized", advice=advice)


def swapped_batch() -> BatchError:
    """Return the error for a model in place of the batch."""
    return BatchError("the batch file is a model: are the arguments swapped?", code="arguments_swapped", advice=SWAPPED)


def folder_batch(path: Path) -> BatchError:
    """Return the error for a folder in place of a batch."""
    advice = f"Make a batch of a folder with a folder of images for each class: wsb batch batch.npz --images {path}."
    found = [name for name in _names(path) if name.endswith((".npz", ".safetensors"))]
    if found:
        advice = f"Give the path of a batch in it: {', '.join(found[:5])}."
    return BatchError(f"the batch {path} is a folder", code="batch_unrecognized", advice=advice)


def _names(path: Path) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return sorted(entry.name for entry in islice(entries, LISTED_FILES))
    except OSError:
        return []


def _no_model(what: str, advice: str) -> ModelError:
    return ModelError(f"the file is {what}, not a model that can be read", code="model_unrecognized", advice=advice)


def _swapped_model(what: str) -> ModelError:
    return ModelError(
        f"the model file is a batch of {what}: are the arguments swapped?", code="arguments_swapped", advice=SWAPPED
    )
