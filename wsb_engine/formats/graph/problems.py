"""The readers' recurring errors: one wording for each code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from wsb_engine.errors import ModelError

REEXPORT = "Export the model again (torch.onnx.export, tf2onnx, skl2onnx) and check it with onnx.checker."
PLAIN = "Export the model in inference mode with plain operators, or leave this part out of the export."


def invalid(message: str, *, advice: str = REEXPORT, **details: Any) -> ModelError:
    """Return the error for a file that breaks the rules of its format."""
    return ModelError(message, code="model_invalid", advice=advice, **details)


def too_complex(what: str, found: int, limit: int) -> ModelError:
    """Return the error for a file whose structure exceeds a limit."""
    return ModelError(
        f"the model has {found} {what}, more than the limit of {limit}",
        code="model_too_complex",
        advice="Simplify the model, or export the classifier alone, without pre- and post-processing.",
        what=what,
        found=found,
        limit=limit,
    )


def limit(what: str, found: int, most: int) -> None:
    """Raise ``model_too_complex`` past a limit."""
    if found > most:
        raise too_complex(what, found, most)


def too_large(where: str, elements: int, limit: int, **details: Any) -> ModelError:
    """Return the error for a tensor that would have too many elements; nothing has been allocated."""
    return ModelError(
        f"{where}: a tensor of {elements} elements, more than the limit of {limit}",
        code="tensor_too_large",
        advice="Use a smaller batch, or export the model without the operator that makes this tensor.",
        elements=elements,
        limit=limit,
        **details,
    )


def unsupported(where: str, why: str, *, advice: str = PLAIN, **details: Any) -> ModelError:
    """Return the error for an operator, or a use of one, that the reader does not support."""
    return ModelError(f"{where}: {why}", code="unsupported_operator", advice=advice, **details)


def evaluation_failed(where: str, why: str, **details: Any) -> ModelError:
    """Return the error for an operator that does not fit the shapes of its arguments."""
    return ModelError(
        f"{where} {why}",
        code="evaluation_failed",
        advice="Check that the batch has the shape that the model was made for.",
        **details,
    )


def missing_input(name: str) -> ModelError:
    """Return the error for a batch that lacks an input."""
    return ModelError(
        f"input {name!r} is missing",
        code="missing_input",
        advice="Give an array for every input of the model, by its name.",
        input=name,
    )


def require_dependence(logits: str, *, on_parameters: bool, on_inputs: bool) -> None:
    """Reject logits that depend on no parameter or on no input.

    Raises:
        ModelError: ``model_no_parameters``, ``logits_constant``.
    """
    if not on_parameters:
        raise ModelError(
            f"the logits {logits!r} depend on no trainable tensor",
            code="model_no_parameters",
            advice="Name the output that the classifier's layers lead to.",
        )
    if not on_inputs:
        raise ModelError(
            f"the logits {logits!r} depend on no input",
            code="logits_constant",
            advice="Name the output that depends on the samples.",
        )


def not_finite(name: str) -> ModelError:
    """Return the error for a tensor with a value that is NaN or infinite."""
    return ModelError(
        f"tensor {name!r} has a value that is NaN or infinite",
        code="model_not_finite",
        advice="Training has diverged, or the export overflowed in float16: take finite weights or an earlier "
        "checkpoint.",
        tensor=name,
    )


def require_finite(parameters: Mapping[str, Tensor]) -> None:
    """Reject parameters that are NaN or infinite.

    Raises:
        ModelError: ``model_not_finite``.
    """
    for name, tensor in parameters.items():
        if not bool(torch.isfinite(tensor).all()):
            raise not_finite(name)
