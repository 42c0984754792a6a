"""Exports of Keras 3 with their right values, both written by ``scripts/keras_cases.py`` in another environment."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

import wsb_engine as wsb
from zoo.cell import FAILS, HOLDS, REFUSED, WRONG, Cell, disagreement

MODELS = {
    "Keras MLP": "mlp",
    "Keras MLP, one logit": "logit",
    "Keras CNN": "cnn",
    "Keras residual CNN": "residual",
    "Keras text CNN": "text_cnn",
    "Keras attention": "attention",
    "Keras bidirectional LSTM": "bilstm",
    "Keras LSTM, two layers": "lstm",
    "Keras GRU": "gru",
    "Keras GRU, unroll=True": "gru_unrolled",
}
"""Row of the table → name of the case."""
WAYS = {'model.export(format="onnx")': "keras", "tf2onnx, from a SavedModel": "tf2onnx"}
"""Column of the table → the case's prefix."""

ERROR = 2e-7
"""Relative error of right values for a file that rounds some constants to float32."""


def observe(row: str, way: str, root: Path) -> Cell:
    """Compare a file with what its case says."""
    folder = root / f"{WAYS[way]}_{MODELS[row]}"
    case = json.loads((folder / "case.json").read_text(encoding="utf-8"))
    if "exporter_fails" in case:
        return Cell(FAILS, note=case["exporter_fails"])
    right = case["expect"]
    try:
        classifier = wsb.load_model(folder / "model.onnx")
        with np.load(folder / "batch.npz") as arrays:
            batch = wsb.Batch({classifier.inputs[0].name: arrays["x"]}, arrays["y"])
        report = wsb.analyze(classifier, batch, wsb.Options(moments="none", relative_gap=2e-7))
    except wsb.EngineError as error:
        return Cell(REFUSED, note=f"`{error.code}`: {error.message}")
    count = report.model.parameters.count
    if count != right["parameters"]:
        return Cell(WRONG, count, f"{right['parameters']} parameters are right, not {count}")
    if report.enclosure is None:
        return Cell(WRONG, count, f"no enclosure: {[warning.code for warning in report.warnings]}")
    wrong = disagreement(report.enclosure.lambda_max, right["lambda_max"], ERROR * abs(right["lambda_max"]))
    if not abs(report.loss.value - right["loss"]) <= ERROR * right["loss"]:
        wrong.append(f"loss = {right['loss']!r}, not {report.loss.value!r}")
    wrong += [f"check {check.name} failed" for check in report.checks if not check.passed]
    return Cell(WRONG if wrong else HOLDS, count, "; ".join(wrong) or case.get("note", ""))
