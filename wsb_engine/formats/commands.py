"""The commands that messages and documents advise: each writes a file that is accepted.

They are written for a module ``model``, a tuple ``example_inputs``, and a scikit-learn estimator ``classifier`` with
rows ``X``. ``tests/engine/formats/test_commands.py`` runs each of them and reads what it writes.
"""

from __future__ import annotations

EXPORT_ONNX = "torch.onnx.export(model, example_inputs, 'model.onnx', dynamo=True, external_data=False)"
"""Writes one file; without the last argument newer versions of torch write ``model.onnx.data`` too."""
EXPORT_WITH_DATA = "torch.onnx.export(model, example_inputs, 'model.onnx', dynamo=True, external_data=True)"
"""Writes ``model.onnx`` and ``model.onnx.data``, for models of more than 2 GiB."""
SAVE_PT2 = "torch.export.save(torch.export.export(model, example_inputs), 'model.pt2')"
"""Needs torch 2.10 or later: before, weights were stored as a pickle."""
SAVE_TORCHSCRIPT = "torch.jit.save(torch.jit.trace(model, example_inputs), 'model.pt')"
CONVERT_SKLEARN = "pathlib.Path('model.onnx').write_bytes(skl2onnx.to_onnx(classifier, X[:1]).SerializeToString())"

TO_ONNX = f"Export the model to ONNX: {EXPORT_ONNX}."
