"""With the real library on torch: two epochs on the CPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from support.forms import full
from support.training import X, Y, batch, example, require, same
from torch import Tensor

import wsb_engine as wsb

require("keras")

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def keras() -> Iterator[Any]:
    os.environ["KERAS_BACKEND"] = "torch"
    import keras

    assert keras.config.backend() == "torch"
    yield keras
    assert (keras.config.floatx(), keras.backend.result_type("float64")) == ("float32", "float32")


def model(keras: Any, activation: str = "softmax", loss: Any = "sparse_categorical_crossentropy") -> Any:
    keras.utils.set_random_seed(3)
    layers = keras.layers
    parts = [layers.Dense(6, "tanh"), layers.BatchNormalization(), layers.LayerNormalization(), layers.Dropout(0.2)]
    made = keras.Sequential([keras.Input((4,)), *parts, layers.Dense(3, activation)])
    rate = keras.optimizers.schedules.ExponentialDecay(0.2, 1, 0.9)
    made.compile(keras.optimizers.SGD(rate, momentum=0.9), loss)
    return made


def fit(made: Any, *callbacks: Any) -> dict[str, list[float]]:
    history = made.fit(X.numpy(), Y.numpy(), batch_size=6, epochs=2, verbose=0, callbacks=list(callbacks))
    return history.history  # type: ignore[no-any-return]


def dense(weights: list[np.ndarray]) -> tuple[float, float]:
    """λ_max and the loss of the model with such weights, written out in torch in float64."""
    W1, b1, gamma, beta, mean, variance, scale, shift, W2, b2 = (torch.tensor(each).double() for each in weights)
    free = (W1, b1, gamma, beta, scale, shift, W2, b2)
    sizes = [each.shape for each in free]

    def loss(theta: Tensor) -> Tensor:
        pieces = theta.split([size.numel() for size in sizes])
        W1, b1, gamma, beta, scale, shift, W2, b2 = (p.view(s) for p, s in zip(pieces, sizes, strict=True))
        h = torch.tanh(X[:15].double() @ W1 + b1)
        h = (h - mean) / torch.sqrt(variance + 1e-3) * gamma + beta
        h = (h - h.mean(1, True)) / torch.sqrt(h.var(1, correction=0, keepdim=True) + 1e-3) * scale + shift
        return torch.nn.functional.cross_entropy(h @ W2 + b2, Y[:15])

    theta = torch.cat([each.flatten() for each in free])
    hessian: Any = torch.autograd.functional.hessian(loss, theta)  # type: ignore[no-untyped-call]
    return float(torch.linalg.eigvalsh(hessian)[-1]), float(loss(theta))


@pytest.mark.slow
def test_a_training_ends_in_the_same_bits_and_each_value_is_that_of_its_checkpoint(keras: Any) -> None:
    from wsb_engine.callbacks import KerasCallback

    weights: dict[int, list[np.ndarray]] = {}
    logged: dict[int, dict[str, float]] = {}
    plain, made = model(keras), model(keras)
    keras.utils.set_random_seed(4)
    fit(plain)

    def log(step: int, metrics: dict[str, float]) -> None:
        logged[step], weights[step] = dict(metrics), made.get_weights()

    keras.utils.set_random_seed(4)
    history = fit(made, KerasCallback(batch(), every_n_steps=3, log=log, on_error="raise"))
    assert same([each.value for each in made.variables], [each.value for each in plain.variables])
    assert {layer.dtype_policy.name for layer in made.layers} == {"float32"}
    assert list(logged) == [3, 6]
    for step, metrics in logged.items():
        largest, loss = dense(weights[step])
        assert metrics["wsb/lambda_max_lower"] <= largest <= metrics["wsb/lambda_max_upper"]
        assert metrics["wsb/lambda_max_upper"] - metrics["wsb/lambda_max_lower"] < 2e-6 * largest
        assert metrics["wsb/loss"] == pytest.approx(loss, rel=1e-12)
        rate = 0.2 * 0.9**step
        assert metrics["wsb/stability_ratio"] == pytest.approx(metrics["wsb/lambda_max_upper"] * rate / 3.8, rel=1e-5)
    assert history["wsb/lambda_max"] == [logged[3]["wsb/lambda_max"], logged[6]["wsb/lambda_max"]]


@pytest.mark.slow
def test_the_values_are_those_of_analyze_on_the_same_checkpoint(keras: Any) -> None:
    from wsb_engine.callbacks import KerasCallback

    keras.utils.set_random_seed(3)
    layers = [keras.Input((4,)), keras.layers.Dense(6, "tanh"), keras.layers.Dense(3, "softmax")]
    made = keras.Sequential(layers)
    made.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    callback = KerasCallback(batch(), on_error="raise")
    fit(made, callback)
    module = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3))
    names = ("0.weight", "0.bias", "2.weight", "2.bias")
    values = [torch.tensor(each).T for each in made.get_weights()]
    module.load_state_dict(dict(zip(names, values, strict=True)))
    ends = wsb.analyze(wsb.from_module(module), batch()).enclosure.lambda_max  # type: ignore[union-attr]
    assert callback.last is not None
    assert callback.last.metrics["wsb/lambda_max"] == pytest.approx((ends.lower + ends.upper) / 2, rel=1e-6)
    assert callback.last.step == 8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("activation", "from_logits", "head"),
    [full("softmax", False, "none"), ("linear", True, "none"), ("log", False, "probabilities")],
)
def test_the_loss_says_what_the_output_means(keras: Any, activation: str, from_logits: bool, head: str) -> None:
    from wsb_engine.callbacks.keras import _as_module
    from wsb_engine.callbacks.measurement import measured

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits)
    made = model(keras, "linear" if activation == "log" else activation, loss)
    if activation == "log":
        made.add(keras.layers.Softmax())
    module, options = _as_module(made, wsb.Options())
    found = measured(module, batch(), options, 0, None)
    largest, loss_value = dense(made.get_weights())
    assert found.lambda_max is not None
    assert found.lambda_max.lower <= largest <= found.lambda_max.upper
    assert found.report.loss.value == pytest.approx(loss_value, rel=1e-9)
    assert found.report.model.head == head


def test_a_single_output_is_a_binary_classifier(keras: Any) -> None:
    from wsb_engine.callbacks import KerasCallback

    made = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, "sigmoid")])
    made.compile(keras.optimizers.SGD(0.1), "binary_crossentropy")
    callback = KerasCallback(wsb.Batch(X, Y % 2), on_error="raise")
    made.fit(X.numpy(), (Y % 2).numpy(), epochs=1, verbose=0, callbacks=[callback])
    assert callback.last is not None
    assert callback.last.report.loss.kind == "binary_cross_entropy"
    p = torch.sigmoid(X.double() @ torch.tensor(made.get_weights()[0]).double() + torch.tensor(made.get_weights()[1]))
    features = torch.cat([X.double(), torch.ones(24, 1)], 1)
    largest = float(torch.linalg.eigvalsh(features.T @ (p * (1 - p) * features) / 24)[-1])
    assert callback.last.metrics["wsb/lambda_max"] == pytest.approx(largest, rel=1e-6)


def test_several_labels_for_each_sample_are_refused(keras: Any) -> None:
    from wsb_engine.callbacks.keras import _as_module
    from wsb_engine.callbacks.measurement import measured

    module, options = _as_module(model(keras, "sigmoid", "binary_crossentropy"), wsb.Options())
    with pytest.raises(wsb.ModelError) as raised:
        measured(module, batch(), options, 0, None)
    assert raised.value.code == "keras_multilabel"


def test_subclassed_models_several_inputs_and_layers_of_one_name_are_measured(keras: Any) -> None:
    from wsb_engine.callbacks import KerasCallback

    class Network(keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.hidden = keras.layers.Dense(4, "tanh", name="dense")
            self.out = keras.layers.Dense(3, "softmax", name="dense")

        def call(self, inputs: Any) -> Any:
            return self.out(self.hidden(keras.ops.concatenate([inputs["a"], inputs["b"]], 1)))

    made, inputs = Network(), {"a": X[:, :1].numpy(), "b": X[:, 1:].numpy()}
    made.compile("sgd", "sparse_categorical_crossentropy")
    callback = KerasCallback(wsb.Batch(inputs, Y), on_error="raise")
    made.fit(inputs, Y.numpy(), epochs=1, verbose=0, callbacks=[callback])
    assert callback.last is not None
    assert callback.last.report.model.parameters.count == 5 * 4 + 5 * 3
    assert callback.last.report.loss.value == pytest.approx(made.evaluate(inputs, Y.numpy(), verbose=0), rel=1e-5)


def test_a_loss_that_is_no_cross_entropy_needs_the_option_head(keras: Any) -> None:
    from wsb_engine.callbacks import KerasCallback
    from wsb_engine.callbacks.keras import _as_module

    made = model(keras, "linear", "mse")
    with pytest.raises(wsb.ModelError) as raised:
        _as_module(made, wsb.Options())
    assert raised.value.code == "keras_loss_unknown"
    assert _as_module(made, wsb.Options(head="logits"))[1].head == "logits"
    with pytest.warns(UserWarning, match="keras_loss_unknown"):
        made.fit(X.numpy(), np.eye(3)[Y.numpy()], epochs=1, verbose=0, callbacks=[KerasCallback(batch())])


def test_smoothed_labels_and_ignored_classes_of_the_compiled_loss_are_taken_over(keras: Any) -> None:
    from wsb_engine.callbacks.keras import _as_module

    made = model(keras, "softmax", keras.losses.CategoricalCrossentropy(label_smoothing=0.1))
    assert _as_module(made, wsb.Options())[1].label_smoothing == 0.1
    assert _as_module(made, wsb.Options(label_smoothing=0.3))[1].label_smoothing == 0.3
    made = model(keras, "softmax", keras.losses.SparseCategoricalCrossentropy(ignore_class=2))
    assert _as_module(made, wsb.Options())[1].ignore_index == 2
    made = model(keras, "sigmoid", keras.losses.BinaryCrossentropy(label_smoothing=0.1))
    with pytest.raises(wsb.ModelError, match="smoothed"):
        _as_module(made, wsb.Options())


def test_a_layer_that_rounds_to_float32_is_found(keras: Any) -> None:
    from wsb_engine.callbacks.keras import _as_module
    from wsb_engine.callbacks.measurement import measured

    class Rounding(keras.layers.Layer):  # type: ignore[misc]
        def call(self, x: Any) -> Any:
            return keras.ops.cast(x, "float32")

    made = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), Rounding()])
    made.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    module, options = _as_module(made, wsb.Options())
    with pytest.raises(wsb.ModelError) as raised:
        measured(module, batch(), options, 0, None)
    assert raised.value.code == "keras_dtype"


@pytest.mark.slow
def test_adam_has_no_ratio(keras: Any) -> None:
    from wsb_engine.callbacks import KerasCallback

    made = model(keras)
    made.compile("adam", "sparse_categorical_crossentropy")
    with pytest.warns(UserWarning, match="Adam is not gradient descent"):
        history = fit(made, KerasCallback(batch()))
    assert "wsb/lambda_max" in history
    assert "wsb/stability_ratio" not in history


def test_another_backend_is_refused(keras: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from wsb_engine.callbacks import KerasCallback

    monkeypatch.setattr(keras.config, "backend", lambda: "jax")
    with pytest.raises(wsb.OptionsError) as raised:
        KerasCallback(batch())
    assert raised.value.code == "keras_backend"


@pytest.mark.slow
def test_the_example_of_the_guide_runs(keras: Any, capsys: pytest.CaptureFixture[str]) -> None:
    exec(example("Keras"), {})  # noqa: S102
    assert capsys.readouterr().out.rstrip().splitlines()[-1].count(",") == 1
