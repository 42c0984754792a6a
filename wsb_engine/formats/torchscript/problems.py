"""The reader's recurring errors, so that each code comes with one wording and one advice."""

from __future__ import annotations

from typing import Any

from wsb_engine.errors import ModelError

TO_ONNX = "Export the model to ONNX: torch.onnx.export(model, example_inputs, 'model.onnx', dynamo=True)."
SAVE_AGAIN = "Save the module again with torch.jit.save, and copy or upload the whole file."


def invalid(message: str, **details: Any) -> ModelError:
    """The file claims to be TorchScript and is not as torch.jit.save writes it."""
    return ModelError(message, code="model_invalid", advice=SAVE_AGAIN, **details)


def refused(message: str, **details: Any) -> ModelError:
    """Loading the file would run something that it brings along."""
    return ModelError(message, code="torchscript_code_refused", advice=TO_ONNX, **details)


def too_complex(what: str, found: int, limit: int) -> ModelError:
    """A limit on the file's structure is exceeded."""
    return ModelError(
        f"the model has {found} {what}, more than the limit of {limit}",
        code="model_too_complex",
        advice="Trace the classifier alone with torch.jit.trace, or export it to ONNX.",
        what=what,
        found=found,
        limit=limit,
    )


def too_large(what: str, found: int, limit: int) -> ModelError:
    """The archive unpacks to more than is allowed; nothing has been unpacked."""
    return ModelError(
        f"{what} has {found} bytes, more than the limit of {limit}",
        code="model_too_large",
        advice="Save the classifier alone, uncompressed, as torch.jit.save does.",
        found=found,
        limit=limit,
    )


def unsupported(operator: str, location: str, why: str = "is not supported") -> ModelError:
    """An operator, or a use of one, that the reader does not have."""
    where = f" ({location})" if location else ""
    return ModelError(
        f"operator {operator}{where}: {why}",
        code="unsupported_operator",
        advice=TO_ONNX,
        operator=operator,
        location=location,
    )


def data_dependent(operator: str, location: str) -> ModelError:
    """A decision, or a number, that hangs on the values of inputs or parameters."""
    where = f" ({location})" if location else ""
    return ModelError(
        f"operator {operator}{where} turns a value that depends on inputs or parameters into a number that the "
        "program decides on",
        code="data_dependent_control_flow",
        advice="Trace the model with torch.jit.trace, so that one path is taken for all samples, or export it to ONNX.",
        operator=operator,
        location=location,
    )


def evaluation_failed(operator: str, location: str, why: str) -> ModelError:
    """An operator that does not fit the shapes of its arguments."""
    where = f" ({location})" if location else ""
    return ModelError(
        f"operator {operator}{where} {why}",
        code="evaluation_failed",
        advice="Check that the batch has the shape that the module was written for.",
        operator=operator,
        location=location,
    )


def tensor_too_large(operator: str, location: str, elements: int, limit: int) -> ModelError:
    """A tensor would have more elements than is allowed; nothing has been allocated."""
    where = f" ({location})" if location else ""
    return ModelError(
        f"operator {operator}{where}: a tensor of {elements} elements, more than the limit of {limit}",
        code="tensor_too_large",
        advice="Use a smaller batch, or leave out the operator that makes this tensor.",
        operator=operator,
        elements=elements,
        limit=limit,
    )
