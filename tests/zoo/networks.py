"""Exports of neural networks against their eager modules: parameters by value, logits, and λ_max."""

from __future__ import annotations

import copy
import functools
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import wsb_engine as wsb
from zoo.cell import FAILS, HOLDS, REFUSED, RELATIVE, WRONG, Cell, disagreement, listed, sentence
from zoo.exporters import EXPORTERS, quiet
from zoo.families import FAMILIES, SAMPLES
from zoo.oracle import Oracle, fold, labels

ROUNDING = 1e-5
"""How far a folded weight may lie from the one that is folded in float64: exporters fold in float32."""


@dataclass(frozen=True)
class Eager:
    """An eager module, and what of it a file can hold."""

    module: nn.Module
    batch: wsb.Batch
    unused: frozenset[str]
    """Parameters without effect on the logits."""
    folded: tuple[str, ...]
    """What exporters compute from its parameters, in sentences."""


@dataclass(frozen=True)
class Match:
    """Which tensors of a file are which of an eager module."""

    eager: Eager
    names: dict[str, str]
    """The module's name → the file's."""
    rows: dict[str, str]
    """Tables of which the file holds only the rows that the example's positions select."""
    missing: set[str]
    surplus: set[str]


@functools.cache
def eager(name: str, folded: bool) -> Eager:
    module = FAMILIES[name].build()
    inputs = FAMILIES[name].inputs(SAMPLES)
    sentences = fold(module, inputs) if folded else ()
    batch = wsb.Batch({key: value.numpy() for key, value in inputs.items()}, labels(SAMPLES).numpy())
    unused = frozenset(Oracle(copy.deepcopy(module), inputs).unused())
    return Eager(module, batch, unused, sentences)


@functools.cache
def oracle(name: str, folded: bool, stored: tuple[tuple[str, bytes], ...]) -> Oracle:
    """The eager module; ``stored`` are parameters that the exporter rounded otherwise when it folded."""
    module = copy.deepcopy(eager(name, folded).module)
    state = dict(module.named_parameters())
    with torch.no_grad():
        for key, data in stored:
            state[key].copy_(torch.frombuffer(bytearray(data), dtype=torch.float32).reshape(state[key].shape))
    return Oracle(module, FAMILIES[name].inputs(SAMPLES))


def observe(name: str, exporter: str, samples: int) -> Cell:
    """Export a family with an example batch of this size, read the file and compare."""
    family = FAMILIES[name]
    with tempfile.TemporaryDirectory() as folder:
        try:
            with quiet():
                path = EXPORTERS[exporter](family.build(), family.inputs(samples), Path(folder))
        except Exception as error:
            return Cell(FAILS, note=sentence(error))
        try:
            with quiet():
                return _compare(name, wsb.load_model(path))
        except wsb.EngineError as error:
            return Cell(REFUSED, note=f"`{error.code}`: {error.message}")


def _compare(name: str, classifier: wsb.Classifier) -> Cell:
    model = classifier.resolve()
    found = {key: tensor.detach().float() for key, tensor in model.parameters.items()}
    count = sum(tensor.numel() for tensor in found.values())
    matches = [_match(eager(name, folded), found) for folded in (False, True)]
    match = min(matches, key=lambda each: len(each.missing) + len(each.surplus))
    if match.missing or match.surplus:
        return Cell(WRONG, count, f"missing: {listed(match.missing)}; too many: {listed(match.surplus)}")
    compared = match.eager
    stored = tuple((key, _as_stored(compared, key, found[each])) for key, each in sorted(match.names.items()))
    right = oracle(name, bool(compared.folded), stored if compared.folded else ())
    wrong = _wrong(right, compared, classifier, model)
    explained = [
        *compared.folded,
        *([f"without effect: {listed(left)}"] if (left := compared.unused - set(match.names)) else []),
        *([f"only the rows in use of {listed(match.rows)}"] if match.rows else []),
    ]
    return Cell(WRONG if wrong else HOLDS, count, "; ".join(wrong or explained))


def _wrong(right: Oracle, compared: Eager, classifier: wsb.Classifier, model: wsb.LogitModel) -> list[str]:
    wrong = []
    wanted, z = right.logits(), _logits(compared, classifier, model)
    error = float((z - wanted).abs().max() / wanted.abs().max())
    if not error <= RELATIVE:
        wrong.append(f"logits differ by {error:.1e}")
    options = wsb.Options(moments="none", relative_gap=2e-7, max_products=3000)
    report = wsb.analyze(classifier, compared.batch, options)
    if report.enclosure is None:
        return [*wrong, f"no enclosure: {[warning.code for warning in report.warnings]}"]
    wrong += disagreement(report.enclosure.lambda_max, *right.lambda_max())
    wrong += [f"check {check.name} failed" for check in report.checks if not check.passed]
    return wrong


def _logits(compared: Eager, classifier: wsb.Classifier, model: wsb.LogitModel) -> Tensor:
    """The file's logits in float64; one by one if it is for one sample, as it may take the rows of its example."""
    inputs = {key: each.double() if each.is_floating_point() else each for key, each in compared.batch.x.items()}
    parameters = {key: each.double() for key, each in model.parameters.items()}
    alone = all(each.shape and each.shape[0] == 1 for each in classifier.inputs)

    def evaluated(step: int) -> Tensor:
        starts = range(0, SAMPLES, step)
        parts = [model.function(parameters, {key: each[i : i + step] for key, each in inputs.items()}) for i in starts]
        return torch.cat(parts)

    try:
        return evaluated(1 if alone else SAMPLES)
    except wsb.ModelError:  # a trace keeps no shapes, and refuses what its example's does not fit
        return evaluated(1)


def _match(compared: Eager, found: dict[str, Tensor]) -> Match:
    """Match tensors by their values in any order: exporters transpose and reshape."""
    wanted = {key: tensor.detach().float().numpy() for key, tensor in compared.module.named_parameters()}
    names: dict[str, str] = {}
    rows: dict[str, str] = {}
    surplus = set()
    for name, tensor in found.items():
        values = tensor.numpy()
        open_names = [key for key in wanted if key not in names]
        whole = next((key for key in open_names if _same_elements(wanted[key], values)), None)
        table = next((key for key in open_names if _holds_rows_of(wanted[key], values)), None)
        if whole is not None:
            names[whole] = name
        elif table is not None:
            names[table] = rows[table] = name
        else:
            surplus.add(f"{name} {list(tensor.shape)}")
    return Match(compared, names, rows, set(wanted) - set(names) - compared.unused, surplus)


def _same_elements(wanted: np.ndarray, values: np.ndarray) -> bool:
    return wanted.size == values.size and np.allclose(
        np.sort(wanted, axis=None),
        np.sort(values, axis=None),
        rtol=ROUNDING,
        atol=ROUNDING * float(np.abs(values).max()),
    )


def _holds_rows_of(table: np.ndarray, values: np.ndarray) -> bool:
    """True for distinct rows of a table: each once, not expanded over the example's batch."""
    if table.ndim != 2 or values.shape[-1:] != table.shape[1:]:
        return False
    rows = values.reshape(-1, table.shape[1])
    return len(np.unique(rows, axis=0)) == len(rows) and all((table == row).all(1).any() for row in rows)


def _as_stored(compared: Eager, key: str, tensor: Tensor) -> bytes:
    """The file's values in the order of the module's."""
    wanted = compared.module.get_parameter(key).detach().float()
    order, other = wanted.reshape(-1).argsort(), tensor.reshape(-1).argsort()
    if wanted.numel() != tensor.numel():
        return wanted.numpy().tobytes()
    values = torch.empty(wanted.numel())
    values[order] = tensor.reshape(-1)[other]
    return values.numpy().tobytes()
