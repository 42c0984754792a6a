"""What a file of torch's older exporter leaves open, which keeps names and no record of what they stand for."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

from torch import Tensor

from wsb_engine.formats.graph import tables
from wsb_engine.formats.graph.once import is_made_up
from wsb_engine.formats.graph.provenance import inclusion, listed
from wsb_engine.model import Tensors

_FOLDED = re.compile(r"^onnx::\w+$")
"""Names that the exporter gives to what it computes from parameters and buffers alone."""
_REORDERED = re.compile(r"^onnx::(MatMul|GRU|LSTM|RNN)_\w+$")
"""Those of weights that it transposes or puts in another order, whether it computed them before or not."""
_MADE_UP = re.compile(r"^onnx::\w+$|^/")
"""These, and names of what the module makes without storing it."""
_TESTS = (tables.is_mask, tables.is_grid, tables.is_distance, tables.is_sinusoidal)
_ZEROS = 2
"""Zeros in a matrix that training would not leave there."""


def doubts(
    used: Tensors,
    left_out: Tensors,
    *,
    auxiliary: Collection[str],
    literals: Collection[str],
    statistics: Collection[str],
) -> Iterator[tuple[str, str]]:
    """Yield code and message of warnings.

    Args:
        used: The parameters.
        left_out: The other constants that the logits depend on.
        auxiliary: Buffers, by their names.
        literals: Numbers of the module's code in places of weights.
        statistics: Running statistics of normalisations.
    """
    yield from _computed(used)
    apart = {*auxiliary, *statistics}
    rest = {name: tensor for name, tensor in left_out.items() if name not in apart}
    if buffers := [name for name in left_out if name in auxiliary]:
        yield (
            "left_out_parameters",
            f"not counted as parameters are {listed(buffers)}, which torch.nn.utils keeps as buffers with a weight "
            "that it normalises or prunes; to include them, name them in parameters",
        )
    if numbers := [name for name in left_out if name in literals]:
        yield (
            "left_out_parameters",
            f"constants of the module's code are used as weights, and are no parameters of it: {listed(numbers)}; to "
            "include them, name them in parameters",
        )
    if named := [name for name, tensor in rest.items() if not is_made_up(name) and not tables.is_mask(tensor)]:
        yield (
            "left_out_parameters",
            f"used as constants are, and not counted as parameters, though the file does not tell whether they are "
            f"parameters or buffers of the module: {listed(named)}; to include them, name them in parameters",
        )
    if folded := {name: tensor for name, tensor in rest.items() if _FOLDED.match(name) and _may_be_learned(tensor)}:
        yield (
            "left_out_parameters",
            f"torch's older exporter computed {listed(folded)} from parameters or buffers, and does not tell from "
            f"which: they don't count as parameters{inclusion(folded)}",
        )


def _computed(used: Tensors) -> Iterator[tuple[str, str]]:
    record = "the default exporter (torch.onnx.export without dynamo=False) keeps a record"
    if named := [name for name in used if _MADE_UP.match(name) and not _REORDERED.match(name)]:
        yield (
            "derived_parameters",
            f"torch's older exporter made up names for {listed(named)}, as it does to what it computes from "
            f"parameters or makes up: H is the Hessian over these tensors of the file; {record}",
        )
    pruned = [name for name, tensor in used.items() if _REORDERED.match(name) and int((tensor == 0).sum()) >= _ZEROS]
    if pruned:
        yield (
            "derived_parameters",
            f"zeros in {listed(pruned)} may be those of a mask, which torch's older exporter multiplies into a weight: "
            f"H is the Hessian over all elements, pruned ones too; {record}",
        )


def _may_be_learned(tensor: Tensor) -> bool:
    """Return whether the values of a constant do not say that it was computed from nothing that was trained."""
    varies = bool((tensor != tensor.reshape(-1)[:1]).any())
    return varies and not any(test(tensor) for test in _TESTS)
