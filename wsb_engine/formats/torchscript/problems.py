"""Errors that only a TorchScript archive can cause, and the advice that fits one."""

from __future__ import annotations

from functools import partial
from typing import Any

from wsb_engine.errors import ModelError
from wsb_engine.formats import commands
from wsb_engine.formats.graph import problems

TO_ONNX = commands.TO_ONNX
SAVE_AGAIN = "Save the module again with torch.jit.save, and copy or upload the whole file."

invalid = partial(problems.invalid, advice=SAVE_AGAIN)
"""The error for a file that is not as torch.jit.save writes it."""
evaluation_failed, limit, too_complex = problems.evaluation_failed, problems.limit, problems.too_complex


def label(operator: str, location: str) -> str:
    """How messages name an operator."""
    return f"operator {operator} ({location})" if location else f"operator {operator}"


def refused(message: str, **details: Any) -> ModelError:
    """Return the error for a file that contains code which loading would run."""
    return ModelError(message, code="torchscript_code_refused", advice=TO_ONNX, **details)


def too_large(what: str, found: int, limit: int) -> ModelError:
    """Return the error for an archive that unpacks to too many bytes; nothing has been unpacked."""
    return ModelError(
        f"{what} has {found} bytes, more than the limit of {limit}",
        code="model_too_large",
        advice="Save the classifier alone, uncompressed, as torch.jit.save does.",
        found=found,
        limit=limit,
    )


def unsupported(operator: str, location: str, why: str = "is not supported") -> ModelError:
    """Return the error for an operator, or a use of one, that the reader does not support."""
    return problems.unsupported(label(operator, location), why, advice=TO_ONNX, operator=operator, location=location)


def hides_parameters(operator: str, location: str) -> ModelError:
    """Return the error for parameters whose derivative the program drops: its gradient has no symmetric Jacobian."""
    return problems.unsupported(
        label(operator, location),
        "hides parameters from the derivative, so that the gradient is that of no function",
        advice="Remove the detach (or torch.no_grad) from forward and save the model again. An export to ONNX drops "
        "it silently: H is then that of the function with the derivative.",
        operator=operator,
        location=location,
    )


def data_dependent(operator: str, location: str) -> ModelError:
    """Return the error for a decision, or a number, that depends on the values of inputs or parameters."""
    return ModelError(
        f"{label(operator, location)} turns a value that depends on inputs or parameters into a number that the "
        "program decides on",
        code="data_dependent_control_flow",
        advice="Trace the model, so that one path is taken for all samples, or export it to ONNX. To trace it: "
        f"{commands.SAVE_TORCHSCRIPT}.",
        operator=operator,
        location=location,
    )


def unsupported_tensor(name: str, what: str = "is sparse, quantised or complex") -> ModelError:
    """Return the error for a tensor of a layout or type that the reader does not compute with."""
    return ModelError(
        f"tensor {name!r} {what}",
        code="unsupported_dtype",
        advice="Save the model with dense tensors of floating, integer or boolean type.",
        tensor=name,
    )
