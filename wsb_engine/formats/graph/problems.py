"""The reader's recurring errors, so that each code comes with one wording and one advice."""

from __future__ import annotations

from typing import Any

from wsb_engine.errors import ModelError

REEXPORT = "Export the model again (torch.onnx.export, tf2onnx, skl2onnx) and check it with onnx.checker."


def invalid(message: str, **details: Any) -> ModelError:
    """The file is an ONNX model that breaks the format's rules."""
    return ModelError(message, code="model_invalid", advice=REEXPORT, **details)


def too_complex(what: str, found: int, limit: int) -> ModelError:
    """A limit on the file's structure is exceeded."""
    return ModelError(
        f"the model has {found} {what}, more than the limit of {limit}",
        code="model_too_complex",
        advice="Simplify the exported graph, for instance with onnxsim or by exporting the classifier alone.",
        what=what,
        found=found,
        limit=limit,
    )


def too_large(where: str, elements: int, limit: int) -> ModelError:
    """A tensor would have more elements than is allowed; nothing has been allocated."""
    return ModelError(
        f"{where}: a tensor of {elements} elements, more than the limit of {limit}",
        code="tensor_too_large",
        advice="Use a smaller batch, or export the model without the operator that makes this tensor.",
        elements=elements,
        limit=limit,
    )
