"""Files → classifiers."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

from wsb_engine.errors import ModelError
from wsb_engine.formats.commands import EXPORT_WITH_DATA
from wsb_engine.formats.detect import ModelFormat, model_format
from wsb_engine.formats.foreign import folder_model
from wsb_engine.formats.graph.limits import LIMITS
from wsb_engine.model import Classifier

LARGEST_MODEL = 8 << 30
"""Default limit on the bytes of a model: of its file, and of its data files together."""


def load_model(
    source: str | os.PathLike[str] | bytes,
    *,
    external_data: str | os.PathLike[str] | None = None,
    max_bytes: int = LARGEST_MODEL,
) -> Classifier:
    """Read a model file without executing anything in it.

    Args:
        source: Path of the file, or its bytes.
        external_data: Folder with the data files that an ONNX model refers to; by default the folder of ``source``,
            and none for bytes. The files are memory-mapped, not copied: leave them as they are while the classifier
            is in use.
        max_bytes: Limit on the bytes of the file, and of its data files together.

    Raises:
        ModelError: ``model_not_found``, ``model_empty``, ``model_too_large``, ``model_unrecognized``,
            ``model_truncated``, ``model_invalid``, ``pickle_refused``, ``pt2_refused``, ``pt2_training_mode``,
            ``pt2_version_unsupported``, ``pt2_several_programs``, ``pt2_overlapping_parameters``,
            ``torchscript_code_refused``, ``torchscript_mobile_refused``, ``external_data_missing``,
            ``external_data_refused``, ``unsupported_operator``, ``unsupported_opset``, ``model_not_finite``,
            ``model_no_parameters``, ….

    The weights of a PyTorch 2 archive are mapped, not copied: leave its file as it is while the classifier is in use.
    A TorchScript archive is checked from its bytes and never run, but it is torch that loads what passed the check.
    Load archives of unknown origin in a process that has nothing to lose, as the service does.

    Examples:
        >>> import wsb
        >>> classifier = wsb.load_model("model.onnx")
        >>> classifier.format, [entry.name for entry in classifier.inputs]
        ('onnx', ['x'])
        >>> {name: tuple(tensor.shape) for name, tensor in classifier.parameters.items()}
        {'w0': (6, 4), 'b0': (6,), 'w1': (3, 6), 'b1': (3,)}
    """
    start = time.perf_counter()
    given = source if isinstance(source, bytes) else Path(source)
    path = given if isinstance(given, Path) else None
    own = None if path is None else _status(path, max_bytes)
    # Readers are imported late, as they need torch and onnx.
    classifier: Classifier
    kind = _format(given)
    if kind == "pt2":
        from wsb_engine.formats.pt2 import Pt2Classifier

        classifier = Pt2Classifier(given)
    elif kind == "torchscript":
        from wsb_engine.formats.torchscript import TorchScriptClassifier

        classifier = TorchScriptClassifier(_read(given))
    else:
        from wsb_engine.formats.onnx import OnnxClassifier

        folder = path.parent if external_data is None and path is not None else external_data
        classifier = OnnxClassifier(_read(given), None if folder is None else Path(folder), own=own, most=max_bytes)
    classifier.load_seconds = time.perf_counter() - start
    return classifier


def external_files(
    path: str | os.PathLike[str],
    *,
    external_data: str | os.PathLike[str] | None = None,
    max_bytes: int = LARGEST_MODEL,
) -> dict[str, Path]:
    """Return the data files that a model file refers to, checked as ``load_model`` checks them.

    Args:
        path: Path of the model.
        external_data: Folder with the data files; by default the folder of ``path``.
        max_bytes: Limit on the bytes of the file, and of its data files together.

    Returns:
        The paths by the names that the model uses; nothing for a model in one file.

    Raises:
        ModelError: as for ``load_model``.
    """
    path = Path(path)
    own = _status(path, max_bytes)
    if _format(path) != "onnx":
        return {}
    from wsb_engine.formats.onnx.external import DataFiles
    from wsb_engine.formats.onnx.proto import parse

    folder = path.parent if external_data is None else Path(external_data)
    _, tensors = parse(_read(path))
    return {name: folder / name for name in DataFiles(tensors, folder, own=own, most=max_bytes).sizes}


def external_names(path: str | os.PathLike[str], *, max_bytes: int = LARGEST_MODEL) -> tuple[str, ...]:
    """Return the names of the data files that a model file refers to, without looking for the files.

    Args:
        path: Path of the model.
        max_bytes: Limit on the bytes of the file.

    Raises:
        ModelError: as for ``load_model``.
    """
    path = Path(path)
    _status(path, max_bytes)
    if _format(path) != "onnx":
        return ()
    from wsb_engine.formats.onnx.external import file_names
    from wsb_engine.formats.onnx.proto import parse

    return file_names(parse(_read(path))[1])


def _status(path: Path, max_bytes: int) -> os.stat_result:
    """Return the status of a regular file that is not too large."""
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise ModelError(
            f"there is no file {path}", code="model_not_found", advice="Check the path of the model."
        ) from error
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    if stat.S_ISDIR(status.st_mode):
        raise folder_model(path)
    if not stat.S_ISREG(status.st_mode):
        raise _unreadable(path, "it is not a regular file")
    if status.st_size > max_bytes:
        raise ModelError(
            f"{path} has {status.st_size} bytes, more than the limit of {max_bytes}",
            code="model_too_large",
            advice="Export a smaller model, or raise the limit (max_bytes in Python, else WSB_MAX_MODEL_TOTAL_BYTES).",
            size=status.st_size,
            limit=max_bytes,
        )
    return status


def _format(source: Path | bytes) -> ModelFormat:
    try:
        return model_format(source)
    except OSError as error:
        raise _unreadable(Path() if isinstance(source, bytes) else source, error) from error


def _read(source: Path | bytes) -> bytes:
    """Return the bytes of a file that its reader takes whole."""
    if isinstance(source, bytes):
        return source
    try:
        if source.stat().st_size > LIMITS.file_bytes:
            raise ModelError(
                f"{source} has more than the {LIMITS.file_bytes} bytes of which one file is read",
                code="model_too_large",
                advice=f"Export the model to ONNX, with its weights in a data file: {EXPORT_WITH_DATA}.",
                limit=LIMITS.file_bytes,
            )
        return source.read_bytes()
    except OSError as error:
        raise _unreadable(source, error) from error


def _unreadable(path: Path, why: str | Exception) -> ModelError:
    why = (why.strerror if isinstance(why, OSError) else None) or str(why)
    return ModelError(
        f"{path} can't be read: {why}",
        code="model_unreadable",
        advice="Give the path of a file that this process may read.",
    )
