"""Files → classifiers and batches. The format is told by the file's contents, never by its name."""

from __future__ import annotations

import io
import os
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

from wsb_engine.errors import ModelError
from wsb_engine.model import Classifier

_ONNX_ADVICE = "Export the model to ONNX: torch.onnx.export(model, example_inputs, 'model.onnx', dynamo=True)."
_ZIP_MAGIC = b"PK\x03\x04"
_ZIP_ENTRIES = 100_000
_LARGEST_FILE = 2**31 - 1


def load_model(source: str | os.PathLike[str] | bytes) -> Classifier:
    """Reads a model file without executing anything in it.

    Args:
        source: Path of the file, or its bytes.

    Raises:
        ModelError: ``model_not_found``, ``model_empty``, ``model_too_large``, ``model_unrecognized``,
            ``model_truncated``, ``model_invalid``, ``pickle_refused``, ``pt2_refused``,
            ``torchscript_code_refused``, ``torchscript_mobile_refused``, ``external_data_refused``,
            ``unsupported_operator``, ``unsupported_opset``, ``model_not_finite``, ``model_no_parameters``, ….

    A TorchScript archive is checked from its bytes and never run, but it is torch that loads what passed the check.
    Load archives of unknown origin in a process that has nothing to lose, as the service does.
    """
    start = time.perf_counter()
    data = source if isinstance(source, bytes) else _read(Path(source))
    if not data:
        raise ModelError("the model file is empty", code="model_empty", advice="Check how the file was written.")
    _refuse_other_formats(data)
    classifier = _reader(data)(data)
    classifier.load_seconds = time.perf_counter() - start
    return classifier


def _reader(data: bytes) -> Callable[[bytes], Classifier]:
    # Imported here so that the formats' names are cheap to import: the readers need torch and onnx.
    if data[:4] == _ZIP_MAGIC:
        from wsb_engine.formats.torchscript import TorchScriptClassifier

        return TorchScriptClassifier
    from wsb_engine.formats.onnx import OnnxClassifier

    return OnnxClassifier


def _read(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > _LARGEST_FILE:
            raise ModelError(
                f"{path} has {size} bytes, more than the limit of {_LARGEST_FILE}",
                code="model_too_large",
                advice="Export a smaller model.",
                size=size,
            )
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ModelError(
            f"there is no file {path}", code="model_not_found", advice="Check the path of the model."
        ) from error
    except OSError as error:
        raise ModelError(
            f"{path} can't be read: {error.strerror}",
            code="model_unreadable",
            advice="Give the path of a file that this process may read.",
        ) from error


def _refuse_other_formats(data: bytes) -> None:
    """Names the formats that people send by mistake, each with what to do instead."""
    if data[:1] == b"\x80" and data[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        raise _pickle()
    if data[:4] == _ZIP_MAGIC:
        _refuse_other_archives(data)
    if data[:8] == b"\x89HDF\r\n\x1a\n":
        raise _other("an HDF5 file (Keras)", "Export the model to ONNX with tf2onnx or keras.Model.export.")
    if data[4:8] == b"TFL3":
        raise _other("a TensorFlow Lite file", "Export the model to ONNX with tf2onnx.")
    if data[8:9] == b"{" and int.from_bytes(data[:8], "little") < len(data):
        raise _other("a safetensors file, which has weights but no graph", _ONNX_ADVICE)


def _pickle() -> ModelError:
    return ModelError(
        "the file is a Python pickle (torch.save, joblib), which runs code when it is loaded",
        code="pickle_refused",
        advice=f"{_ONNX_ADVICE} For scikit-learn use skl2onnx.to_onnx.",
    )


def _other(what: str, advice: str) -> ModelError:
    return ModelError(f"the file is {what}, not a model that can be read", code="model_unrecognized", advice=advice)


def _refuse_other_archives(data: bytes) -> None:
    """Lets TorchScript pass, by the names of an archive's members; nothing is unpacked."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()[:_ZIP_ENTRIES]
    except (zipfile.BadZipFile, ValueError, OverflowError, NotImplementedError) as error:
        raise _other("a damaged or truncated zip archive", "Copy or upload the file again.") from error
    members = {name.partition("/")[2] for name in names} | set(names)
    if any(name.startswith("models/") or name.endswith("exported_program.json") for name in members):
        raise ModelError(
            "the file is a torch.export archive (.pt2), which can run code when it is loaded",
            code="pt2_refused",
            advice=_ONNX_ADVICE,
        )
    if "constants.pkl" in members or "bytecode.pkl" in members:
        return
    if "data.pkl" in members:
        raise _pickle()
    raise _other("a zip archive", "Give the model file itself.")
