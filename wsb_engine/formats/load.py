"""Files → classifiers."""

from __future__ import annotations

import os
import time
from pathlib import Path

from wsb_engine.errors import ModelError
from wsb_engine.formats.detect import model_format
from wsb_engine.formats.foreign import folder_model
from wsb_engine.model import Classifier

_LARGEST_FILE = 2**31 - 1


def load_model(source: str | os.PathLike[str] | bytes) -> Classifier:
    """Read a model file without executing anything in it.

    Args:
        source: Path of the file, or its bytes.

    Raises:
        ModelError: ``model_not_found``, ``model_empty``, ``model_too_large``, ``model_unrecognized``,
            ``model_truncated``, ``model_invalid``, ``pickle_refused``, ``pt2_refused``,
            ``torchscript_code_refused``, ``torchscript_mobile_refused``, ``external_data_refused``,
            ``unsupported_operator``, ``unsupported_opset``, ``model_not_finite``, ``model_no_parameters``, ….

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
    if not isinstance(source, bytes) and Path(source).is_dir():
        raise folder_model(Path(source))
    data = source if isinstance(source, bytes) else _read(Path(source))
    # Readers are imported late, as they need torch and onnx.
    classifier: Classifier
    if model_format(data) == "torchscript":
        from wsb_engine.formats.torchscript import TorchScriptClassifier

        classifier = TorchScriptClassifier(data)
    else:
        from wsb_engine.formats.onnx import OnnxClassifier

        classifier = OnnxClassifier(data)
    classifier.load_seconds = time.perf_counter() - start
    return classifier


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
