"""Tables that are looked up at computed positions, which the file's runtime computes in the file's precision."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from wsb_engine import load_model


@pytest.mark.parametrize("operator", ["Cast", "Floor"])
def test_a_bucket_by_the_logarithm_of_a_position_is_the_runtimes(
    operator: str, build: Any, weights: Any, logits: Any
) -> None:
    leap = {"Cast": {"to": TensorProto.INT64}}.get(operator, {})
    nodes = [
        helper.make_node("Cast", ["positions"], ["p"], to=TensorProto.FLOAT),
        helper.make_node("Log", ["p"], ["l"]),
        helper.make_node("Div", ["l", "unit"], ["q"]),  # whole at powers of two, but for rounding
        helper.make_node(operator, ["q"], ["f"], **leap),
        helper.make_node("Cast", ["f"], ["bucket"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "bucket"], ["bias"]),
        helper.make_node("Add", ["x", "bias"], ["h"]),
        helper.make_node("MatMul", ["h", "w"], ["z"]),
    ]
    constants = {"positions": np.arange(1, 33), "unit": np.float32(np.log(np.float32(2)))}
    data = build.bytes(nodes, weights(table=(7,), w=(32, 3)) | constants, inputs={"x": ["n", 32]})
    model = load_model(data).resolve(head="logits")
    assert model.reference is not None
    x = np.random.default_rng(0).normal(size=(4, 32)).astype(np.float32)
    np.testing.assert_allclose(logits(model, x), model.reference({"x": x}), rtol=1e-5, atol=1e-5)
