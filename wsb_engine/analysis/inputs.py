"""From options, a classifier and a batch to a well-posed problem: device, dtype, parameters and inputs."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from math import prod

import torch
from torch import Tensor

from wsb_engine import devices
from wsb_engine.batch import Batch
from wsb_engine.curvature.cost import nominal_rate
from wsb_engine.errors import BatchError, OptionsError
from wsb_engine.memory import total_memory, working_memory
from wsb_engine.model import Classifier, Input, Tensors
from wsb_engine.options import Options
from wsb_engine.spectrum.density import STARTS, STEPS

_NAMED, _LISTED = 10, 50
"""Names in the text and in the details of an error."""
EXPECTED_PRODUCTS = 30
"""Typical number of Hessian-vector products of an enclosure."""
FORWARD_PASSES = 6
"""Operations of a product relative to those of the logits."""
DOUBLE_SECONDS, DOUBLE_SECONDS_GPU = 600.0, 60.0
"""Products that are expected to take longer in float64, at the nominal rate of the device, are computed in float32."""
DOUBLE_VECTORS = 8
"""Vectors of parameter size in float64 that a product and its run hold at least; without room for them on a GPU, an
analysis is in float32."""


def device(options: Options) -> torch.device:
    """Return the device that the options name; ``auto`` takes the current GPU if there is one.

    Raises:
        OptionsError: ``device_unavailable``.
    """
    count, (kind, _, number) = devices.count(), options.device.partition(":")
    if kind == "cpu" or (kind == "auto" and not count):
        return torch.device("cpu")
    chosen = int(number) if number else None
    if (chosen or 0) >= count:
        raise OptionsError(
            f"device {options.device} is not there: this machine offers {count} CUDA devices",
            code="device_unavailable",
            advice="Choose cpu, or auto.",
        )
    return devices.current() if chosen is None else devices.numbered(chosen)


def several(options: Options) -> list[torch.device]:
    """Return the devices that share an analysis; empty if the options leave it to one.

    Raises:
        OptionsError: ``device_unavailable``.
    """
    if options.devices is None:
        return []
    if options.devices == "all":
        return [devices.numbered(index) for index in range(devices.count())] or [torch.device("cpu")]
    return [device(options.model_copy(update={"device": name})) for name in options.devices]


def dtype(options: Options, on: torch.device, parameters: int, memory: int) -> torch.dtype:
    """Return the dtype of the options; for ``auto`` float64, unless a GPU has no memory for it."""
    if options.dtype != "auto":
        return torch.float64 if options.dtype == "float64" else torch.float32
    needed = DOUBLE_VECTORS * torch.float64.itemsize * parameters
    return torch.float32 if on.type != "cpu" and needed > memory else torch.float64


def too_dear_in_double(options: Options, on: torch.device, operations: float) -> bool:
    """Return whether ``dtype="auto"`` has to turn to float32 to save time.

    GPUs differ more in float64 than in anything else: some do half as many operations as in float32, others a
    sixty-fourth.

    Args:
        options: Options.
        on: Device.
        operations: Operations of the logits of all samples.
    """
    if options.dtype != "auto":
        return False
    products = min(EXPECTED_PRODUCTS, options.max_products) * FORWARD_PASSES * operations
    limit = DOUBLE_SECONDS if on.type == "cpu" else DOUBLE_SECONDS_GPU
    return products > limit * nominal_rate(on, torch.float64)


def expected_products(options: Options, parameters: int) -> int:
    """Return how many single vectors an analysis of so many parameters is expected to multiply."""
    expected = min(EXPECTED_PRODUCTS, options.max_products) if options.enclosure else 0
    if options.spectrum == "top" or options.alignment:
        expected = max(expected, options.max_products)
    if options.layers == "certified" or options.groups:
        expected += EXPECTED_PRODUCTS * (1 + len(options.groups))
    if options.density:
        expected += STARTS * min(STEPS, options.max_products)
    return min(expected, parameters)


def memory_limit(options: Options, on: torch.device) -> int:
    """Return the bytes to work in."""
    return working_memory(total_memory(on)) if options.memory_limit is None else options.memory_limit


def require_enclosure(options: Options) -> None:
    """Refuse the question without the enclosure that its upper limit rests on.

    Raises:
        OptionsError: ``enclosure_required``.
    """
    if options.population is not None and not options.enclosure:
        raise OptionsError(
            "population rests on the enclosure of the batch's λ_max, which is turned off",
            code="enclosure_required",
            advice="Leave enclosure on, or leave population out.",
        )


def included(classifier: Classifier, patterns: tuple[str, ...]) -> tuple[str, ...]:
    """Return the stored tensors that patterns name although the reader took them for constants.

    Raises:
        OptionsError: ``parameter_pattern_unmatched`` for a pattern that matches no stored tensor at all.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        glob = pattern.removeprefix("!")
        if _matching(classifier.parameters, glob):
            continue
        constants = _matching(classifier.constants, glob)
        if not constants:
            raise unmatched(glob, classifier.parameters, classifier.constants)
        if not pattern.startswith("!"):
            found.update(dict.fromkeys(constants))
    return tuple(found)


def select(parameters: Tensors, patterns: tuple[str, ...]) -> list[str]:
    """Return names that a pattern includes and none excludes, in the model's order; excludes alone start from all.

    Raises:
        OptionsError: ``parameter_pattern_unmatched``, ``no_parameters_selected``.
    """
    includes = [pattern for pattern in patterns if not pattern.startswith("!")] or ["*"]
    excludes = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    for pattern in includes:
        if not _matching(parameters, pattern):
            raise unmatched(pattern, parameters, {})
    chosen = [
        name
        for name in parameters
        if any(fnmatchcase(name, pattern) for pattern in includes)
        and not any(fnmatchcase(name, pattern) for pattern in excludes)
    ]
    if not chosen:
        raise OptionsError(
            "the parameters option excludes every parameter",
            code="no_parameters_selected",
            advice="Leave at least one parameter in.",
        )
    return chosen


def _matching(tensors: Tensors, pattern: str) -> list[str]:
    return [name for name in tensors if fnmatchcase(name, pattern)]


def unmatched(pattern: str, parameters: Tensors, constants: Tensors) -> OptionsError:
    """Return the error for a pattern that matches no name; it lists the names."""
    advice = f"The parameters are {_listed(parameters)}."
    if constants:
        advice += f" Other stored tensors, which a pattern can include: {_listed(constants)}."
    return OptionsError(
        f"no parameter matches {pattern!r}",
        code="parameter_pattern_unmatched",
        advice=advice,
        pattern=pattern,
        parameters=list(parameters)[:_LISTED],
        constants=list(constants)[:_LISTED],
    )


def _listed(tensors: Tensors) -> str:
    names = [repr(name) for name in list(tensors)[:_NAMED]]
    return ", ".join(names) + (f" and {len(tensors) - _NAMED} more" if len(tensors) > _NAMED else "")


def match_inputs(declared: tuple[Input, ...], batch: Batch) -> dict[str, Tensor]:
    """Return the batch's arrays as stored by the model's input names, checked against declared shapes and kinds.

    Raises:
        BatchError: ``input_missing``, ``input_unknown``, ``feature_count_mismatch``, ``input_kind_mismatch``.
    """
    arrays = dict(batch.x)
    if len(declared) == 1 and set(arrays) == {"x"}:
        arrays = {declared[0].name: arrays["x"]}
    wanted = [entry.name for entry in declared]
    missing, unknown = [n for n in wanted if n not in arrays], [n for n in arrays if n not in wanted]
    if missing:
        takes = "; ".join(_described(entry.name, entry.dtype, entry.shape) for entry in declared[:_LISTED])
        has = "; ".join(
            _described(name, each.dtype, tuple(each.shape)) for name, each in list(arrays.items())[:_LISTED]
        )
        raise BatchError(
            f"the batch lacks the model's input {', '.join(map(repr, missing[:_LISTED]))}; the model takes {takes}; "
            f"the batch has {has}",
            code="input_missing",
            advice=_renaming(missing, unknown),
            inputs=wanted,
        )
    if unknown:
        raise BatchError(
            f"the batch has an array {unknown[0]!r}, which is no input of the model",
            code="input_unknown",
            advice=f"Keep y, weights and the model's inputs: {', '.join(wanted)}.",
            inputs=wanted,
        )
    return {entry.name: _checked(entry, arrays[entry.name]) for entry in declared}


def widened(declared: tuple[Input, ...], inputs: Mapping[str, Tensor]) -> dict[str, torch.dtype]:
    """Return the dtypes of floating inputs for which the batch has integers (pixels, counts)."""
    return {
        entry.name: entry.dtype
        for entry in declared
        if entry.dtype is not None and entry.dtype.is_floating_point and not inputs[entry.name].is_floating_point()
    }


_LISTED = 20
"""Arrays that a message lists."""


def _described(name: str, dtype: torch.dtype | None, shape: tuple[int | None, ...] | None) -> str:
    sizes = "" if shape is None else f" [{', '.join(['N', *('?' if n is None else str(n) for n in shape[1:])])}]"
    return f"{name!r}{'' if dtype is None else f' {_name(dtype)}'}{sizes}"


def _renaming(missing: list[str], unknown: list[str]) -> str:
    advice = "Save one array per model input under its name, or x for a model with a single input."
    if len(missing) == len(unknown) == 1:
        old, new = unknown[0], missing[0]
        return (
            f"{advice} If {old!r} is that input: a = dict(numpy.load('batch.npz')); a[{new!r}] = a.pop({old!r}); "
            "numpy.savez('batch.npz', **a)."
        )
    return advice


def _checked(entry: Input, tensor: Tensor) -> Tensor:
    shape = tuple(tensor.shape)
    if entry.shape is not None and not _fits(entry.shape, shape):
        raise BatchError(
            f"input {entry.name!r} expects shape {_described('', None, entry.shape)[3:]}, the batch has {list(shape)}",
            code="feature_count_mismatch",
            advice=_reshaping(entry, shape) or "Give each sample the features that the model was exported with.",
            input=entry.name,
            expected=list(entry.shape),
            actual=list(shape),
        )
    if entry.dtype is None:
        return tensor
    if tensor.is_floating_point() and not entry.dtype.is_floating_point:
        raise BatchError(
            f"input {entry.name!r} expects {_name(entry.dtype)}, the batch has {_name(tensor.dtype)}",
            code="input_kind_mismatch",
            advice="Save integer inputs (tokens, indices) with an integer dtype.",
            input=entry.name,
        )
    return tensor


def _fits(declared: tuple[int | None, ...], shape: tuple[int, ...]) -> bool:
    return len(shape) == len(declared) and all(
        size is None or size == actual for size, actual in zip(declared[1:], shape[1:], strict=True)
    )


LAYOUTS: Mapping[tuple[int, ...], str] = {(0, 3, 1, 2): "channels last (NHWC)", (0, 2, 3, 1): "channels first (NCHW)"}
"""Order of axes that brings images into the other layout → the layout that they have."""


def transposing(axes: tuple[int, ...]) -> str:
    """Return the advice for images whose layout is not the model's."""
    return (
        f"The images have {LAYOUTS[axes]}, the model takes the other layout: transpose them with "
        f"x = numpy.transpose(x, {axes}) before you save the batch."
    )


def _reshaping(entry: Input, shape: tuple[int, ...]) -> str | None:
    """Return the advice that brings an array into the declared shape without changing its elements; None without."""
    declared = entry.shape or ()
    if len(shape) == 4:
        for axes in LAYOUTS:
            if _fits(declared, tuple(shape[axis] for axis in axes)):
                return transposing(axes)
    features = [size for size in declared[1:] if size is not None]
    if len(shape) != len(declared) and len(features) == len(declared) - 1 and prod(features) == prod(shape[1:]):
        return (
            "Each sample has as many features as the model takes: if they are in the same order, reshape them with "
            f"x = x.reshape(len(x), {', '.join(map(str, features))}) before you save the batch."
        )
    return None


def _name(kind: torch.dtype) -> str:
    return str(kind).removeprefix("torch.")
