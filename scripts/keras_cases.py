"""Export models of Keras 3, with right values from TensorFlow in float64.

    python -m venv VENV && VENV/bin/pip install keras tensorflow-cpu tf2onnx onnx onnxruntime
    VENV/bin/python scripts/keras_cases.py FOLDER [NAME…]
    ./scripts/zoo --keras FOLDER --only Keras

TensorFlow needs an environment apart from that of the project. FOLDER gets a folder of the form of tests/cases for each
model and way of exporting it; two of them are kept there. The right values are eigenvalues of the dense Hessian of the
mean cross-entropy, by two nested tapes over the numbers that the file keeps.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.ops import array_ops

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


def lstm() -> list[Any]:
    layers = [L.LSTM(4, return_sequences=True), L.LSTM(3, return_sequences=True), L.GlobalAveragePooling1D()]
    return [keras.Input((6, 4)), *layers, L.Dense(CLASSES, "softmax")]


def gru() -> list[Any]:
    return [keras.Input((6, 4)), L.GRU(3), L.Dense(CLASSES)]


def gru_unrolled() -> list[Any]:
    return [keras.Input((4, 3)), L.GRU(3, unroll=True), L.Dense(CLASSES)]


def text_cnn() -> list[Any]:
    layers = [L.Embedding(11, 4), L.Conv1D(5, 3, activation="relu"), L.GlobalMaxPooling1D(), L.Dropout(0.5)]
    return [keras.Input((7,), dtype="int32"), *layers, L.Dense(CLASSES, "softmax")]


def residual() -> Any:
    x = keras.Input((8, 8, 3))
    a = L.ReLU(max_value=6)(L.BatchNormalization()(L.Conv2D(4, 3, 2, "same", use_bias=False)(x)))
    b = L.BatchNormalization()(L.SeparableConv2D(4, 3, padding="same", use_bias=False)(a))
    pooled = L.GlobalAveragePooling2D(keepdims=True)(b)
    gate = L.Conv2D(4, 1, activation="sigmoid")(L.Conv2D(2, 1, activation="swish")(pooled))
    mixed = L.MaxPooling2D(2)(L.Activation("tanh")(L.Add()([a, L.Multiply()([b, gate])])))
    return keras.Model(x, L.Dense(CLASSES, "softmax")(L.Flatten()(mixed)))


MODELS = {
    "mlp": mlp, "logit": logit, "cnn": cnn, "residual": residual, "text_cnn": text_cnn, "attention": attention,
    "bilstm": bilstm, "lstm": lstm, "gru": gru, "gru_unrolled": gru_unrolled,
}  # fmt: skip


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


def fold(model: Any) -> tuple[list[Any], str]:
    """Compute what exporters compute from variables, in place: the variables that the file has, and what was computed.

    Batch normalisation becomes a scale and a shift, and the scale is multiplied into a convolution that has no bias.
    """
    kept = list(model.trainable_variables)
    notes = []
    for layer in model.layers:
        if isinstance(layer, L.BatchNormalization):
            scale = layer.gamma / tf.sqrt(layer.moving_variance + layer.epsilon)
            layer.beta.assign(_rounded(layer.beta - layer.moving_mean * scale))
            layer.moving_mean.assign(tf.zeros_like(scale))
            layer.moving_variance.assign(tf.ones_like(scale) - layer.epsilon)
            before = layer.input._keras_history.operation
            if before.use_bias:
                layer.gamma.assign(_rounded(scale))
                notes.append("batch normalisations are kept as a scale and a shift")
                continue
            kernel = before.pointwise_kernel if isinstance(before, L.SeparableConv2D) else before.kernel
            kernel.assign(_rounded(kernel * scale))
            layer.gamma.assign(tf.ones_like(scale))
            kept = [each for each in kept if each is not layer.gamma]
            notes.append("scales of batch normalisations are multiplied into convolutions without a bias")
    return [each.value for each in kept], "; ".join(sorted(set(notes)))


def _rounded(value: Any) -> Any:
    return tf.cast(tf.cast(value, tf.float32), tf.float64)


def oracle(model: Any, x: np.ndarray, y: np.ndarray) -> tuple[dict[str, float], str]:
    """Return the right values for the file, and a note of how its parameters differ from the model's."""
    # tf.nn.moments stops the gradient of the mean: right for first derivatives only.
    array_ops.stop_gradient = tf.identity
    variables, note = fold(model)
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
    right = {
        "parameters": len(hessian),
        "loss": float(loss),
        "lambda_max": float(eigenvalues[-1]),
        "lambda_min": float(eigenvalues[0]),
        "trace": float(np.trace(hessian)),
        "frobenius_squared": float((hessian**2).sum()),
    }
    return right, note


def keras_export(model: Any, path: Path) -> None:
    """Write the model as Keras does."""
    model.export(path, format="onnx", verbose=False)


def tf2onnx_export(model: Any, path: Path) -> None:
    """Write the model as the command of tf2onnx does."""
    with tempfile.TemporaryDirectory() as folder:
        model.export(folder, verbose=False)
        command = [sys.executable, "-m", "tf2onnx.convert", "--saved-model", folder, "--output", str(path)]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])


EXPORTS = {
    "keras": ("model.export(format='onnx')", keras_export),
    "tf2onnx": ("python -m tf2onnx.convert --saved-model", tf2onnx_export),
}


def write(root: Path, name: str) -> None:
    """Export a model in each way, with a batch and the right values or the exporter's error beside it."""
    keras.config.set_dtype_policy("float32")
    model = build(name)
    randomise(model)
    rng = np.random.default_rng(1)
    shape = (SAMPLES, *model.input_shape[1:])
    tokens = model.inputs[0].dtype == "int32"
    x = rng.integers(0, 11, shape).astype("int32") if tokens else rng.standard_normal(shape).astype("float32")
    y = rng.integers(0, max(2, model.output_shape[1]), SAMPLES)
    model(x)
    keras.config.set_dtype_policy("float64")
    double = build(name)
    for to, of in zip(double.weights, model.weights, strict=True):
        to.assign(of.numpy().astype("float64"))
    keras.config.set_dtype_policy("float32")
    right, note = oracle(double, x, y)
    for way, (words, export) in EXPORTS.items():
        folder = root / f"{way}_{name}"
        folder.mkdir(parents=True, exist_ok=True)
        case = {
            "shows": f"A model of Keras 3 ({name}) by {words}.",
            "options": {},
            "expect": right,
            # Folded weights are rounded to float32 in the file.
            "tolerance": dict.fromkeys(("loss", "lambda_max", "lambda_min", "trace", "frobenius_squared"), 3e-06),
            "outside": 1e-12,
            "or_codes": [],
            "note": note,
            "oracle": f"float64 double backward of the Keras model by TensorFlow {tf.__version__}, dense eigenvalues",
        }
        try:
            export(model, folder / "model.onnx")
        except Exception as error:
            case["exporter_fails"] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
        np.savez(folder / "batch.npz", x=x, y=y)
        (folder / "case.json").write_text(json.dumps(case, indent=1) + "\n")
        print(name, way, case.get("exporter_fails"), right, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", choices=MODELS, default=list(MODELS), metavar="NAME")
    given = parser.parse_args()
    for each in given.names:
        write(given.folder, each)
