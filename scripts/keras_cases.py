"""Write the cases of tests/cases that are exports of Keras 3, with right values from TensorFlow in float64.

    python -m venv VENV && VENV/bin/pip install keras tensorflow-cpu tf2onnx onnx onnxruntime
    VENV/bin/python scripts/keras_cases.py [NAME…]

TensorFlow needs an environment apart from that of the project. The right values are eigenvalues of the dense Hessian of
the mean cross-entropy, by two nested tapes over the variables that the file keeps: batch normalisation is folded into
the convolution before it, as tf2onnx does.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import keras
import numpy as np
import tensorflow as tf
import tf2onnx

CASES = Path(__file__).resolve().parent.parent / "tests" / "cases"
SAMPLES, CLASSES = 12, 3
L = keras.layers


def mlp() -> list[Any]:
    return [keras.Input((6,)), L.Dense(8, "tanh"), L.Dense(5, "gelu"), L.Dense(CLASSES, "softmax")]


def logit() -> list[Any]:
    return [keras.Input((6,)), L.Dense(5, "silu"), L.Dense(1, "sigmoid")]


def cnn() -> list[Any]:
    convolutions = [L.Conv2D(4, 3, padding="same"), L.BatchNormalization(), L.Activation("silu"), L.AveragePooling2D(2)]
    convolutions += [L.DepthwiseConv2D(3, padding="same", activation="tanh"), L.Conv2D(5, 3, 2, "same")]
    return [keras.Input((8, 6, 3)), *convolutions, L.GlobalAveragePooling2D(), L.Dropout(0.5), L.Dense(CLASSES)]


def attention() -> Any:
    x = keras.Input((5,), dtype="int32")
    embedded = L.Embedding(11, 4)(x)
    mixed = L.LayerNormalization()(embedded + L.MultiHeadAttention(2, 2)(embedded, embedded))
    return keras.Model(x, L.Dense(CLASSES)(L.GlobalAveragePooling1D()(L.Dense(4, activation="gelu")(mixed))))


def bilstm() -> list[Any]:
    return [keras.Input((6, 4)), L.Bidirectional(L.LSTM(3)), L.Dense(CLASSES)]


MODELS = {"mlp": mlp, "logit": logit, "cnn": cnn, "attention": attention, "bilstm": bilstm}


def build(name: str) -> Any:
    made = MODELS[name]()
    return keras.Sequential(made) if isinstance(made, list) else made


def randomise(model: Any) -> None:
    """Draw every variable at random, so that no exporter drops or merges any."""
    rng = np.random.default_rng(0)
    for variable in model.weights:
        low = 0.5 if variable.name in ("gamma", "moving_variance") else None
        drawn = 0.4 * rng.standard_normal(variable.shape) if low is None else low + rng.random(variable.shape)
        variable.assign(drawn.astype("float32"))


def fold(model: Any) -> list[Any]:
    """Fold batch normalisation, and return the variables that the file has."""
    kept = list(model.trainable_variables)
    for before, layer in zip(model.layers, model.layers[1:], strict=False):
        if isinstance(layer, L.BatchNormalization):
            factor = layer.gamma / tf.sqrt(layer.moving_variance + layer.epsilon)
            before.bias.assign((before.bias - layer.moving_mean) * factor + layer.beta)
            before.kernel.assign(before.kernel * factor)
            layer.gamma.assign(tf.sqrt(layer.moving_variance + layer.epsilon))
            layer.beta.assign(layer.moving_mean)
            kept = [each for each in kept if each is not layer.gamma and each is not layer.beta]
    return [each.value for each in kept]


def oracle(model: Any, x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    variables = fold(model)
    probabilities = model.layers[-1].activation.__name__ in ("softmax", "sigmoid")
    if probabilities:
        model.layers[-1].activation = keras.activations.linear
    with tf.GradientTape(persistent=True) as outer:
        with tf.GradientTape() as inner:
            z = model(x, training=False)
            z = tf.concat([tf.zeros_like(z), z], 1) if z.shape[1] == 1 else z
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, z))
        gradient = tf.concat([tf.reshape(g, [-1]) for g in inner.gradient(loss, variables)], 0)
    rows = [
        tf.reshape(part, [gradient.shape[0], -1])
        for part in outer.jacobian(gradient, variables, experimental_use_pfor=False)
    ]
    hessian = tf.concat(rows, 1).numpy()
    eigenvalues = np.linalg.eigvalsh((hessian + hessian.T) / 2)
    return {
        "parameters": len(hessian),
        "loss": float(loss),
        "lambda_max": float(eigenvalues[-1]),
        "lambda_min": float(eigenvalues[0]),
        "trace": float(np.trace(hessian)),
        "frobenius_squared": float((hessian**2).sum()),
    }


def keras_export(model: Any, path: Path) -> None:
    """Write the model as Keras does."""
    model.export(path, format="onnx", verbose=False)


def tf2onnx_export(model: Any, path: Path) -> None:
    """Write the model as tf2onnx does for a function."""
    signature = [tf.TensorSpec((None, *each.shape[1:]), each.dtype, name="x") for each in model.inputs]
    tf2onnx.convert.from_function(tf.function(model), signature, output_path=str(path))


EXPORTS = {"keras": ("model.export(format='onnx')", keras_export), "tf2onnx": ("tf2onnx", tf2onnx_export)}


def write(name: str, way: str) -> None:
    words, export = EXPORTS[way]
    folder = CASES / f"{way}_{name}"
    folder.mkdir(exist_ok=True)
    keras.config.set_dtype_policy("float32")
    model = build(name)
    randomise(model)
    rng = np.random.default_rng(1)
    shape = (SAMPLES, *model.input_shape[1:])
    x = (
        rng.integers(0, 11, shape).astype("int32")
        if name == "attention"
        else rng.standard_normal(shape).astype("float32")
    )
    y = rng.integers(0, max(2, model.output_shape[1]), SAMPLES)
    model(x)
    export(model, folder / "model.onnx")
    np.savez(folder / "batch.npz", x=x, y=y)
    keras.config.set_dtype_policy("float64")
    double = build(name)
    for to, of in zip(double.weights, model.weights, strict=True):
        to.assign(of.numpy().astype("float64"))
    case = {
        "shows": f"A model of Keras 3 ({name}) by {words}.",
        "options": {},
        "expect": oracle(double, x, y),
        # Folded weights are rounded to float32 in the file.
        "tolerance": dict.fromkeys(("loss", "lambda_max", "lambda_min", "trace", "frobenius_squared"), 3e-06),
        "outside": 2e-6 if name == "cnn" else 1e-12,
        "or_codes": [],
        "oracle": f"float64 double backward of the Keras model by TensorFlow {tf.__version__}, dense eigenvalues",
    }
    (folder / "case.json").write_text(json.dumps(case, indent=1) + "\n")
    print(name, case["expect"])


if __name__ == "__main__":
    for each in sys.argv[1:] or MODELS:
        for way in EXPORTS:
            write(each, way)
