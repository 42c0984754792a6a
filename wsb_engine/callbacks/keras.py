"""The callback of Keras 3 on its torch backend."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import keras
from torch import Tensor, nn

from wsb_engine.batch import Batch
from wsb_engine.callbacks.measurement import Measurement
from wsb_engine.callbacks.stability import Descent, not_descent
from wsb_engine.callbacks.tracker import OnError, Tracker
from wsb_engine.callbacks.writers import writer
from wsb_engine.errors import ModelError, OptionsError
from wsb_engine.internals import keras_layers, keras_shortened
from wsb_engine.options import Head, Options

LOSSES = {
    *("sparse_categorical_crossentropy", "SparseCategoricalCrossentropy"),
    *("categorical_crossentropy", "CategoricalCrossentropy", "binary_crossentropy", "BinaryCrossentropy"),
}
"""Names of Keras's cross-entropies."""
HEADS: dict[tuple[bool, bool], Head] = {
    (False, False): "probabilities",
    (False, True): "logits",
    (True, False): "binary_probability",
    (True, True): "binary_logit",
}
"""By whether the classifier is binary, and whether its output is logits."""


class KerasCallback(keras.callbacks.Callback):  # type: ignore[misc]
    """Measures λ_max while ``model.fit`` trains, and puts it in the logs that Keras keeps and passes on.

    The history, ``CSVLogger``, ``ModelCheckpoint`` and other callbacks after this one read them there.

    Args:
        batch: As of ``measure``.
        every_n_steps: Measures whenever ``optimizer.iterations`` passes a multiple of this. The logs of an epoch have
            the last measurement.
        every_n_epochs: Measures after every n-th epoch; every epoch if neither is given.
        log: Where metrics go as well, as of ``LoopCallback``.
        options: As of ``measure``. The loss that the model was compiled with says what ``head`` is, unless it is set.
        on_error: ``warn`` to go on after a failed measurement, with one warning for each kind of failure; or ``raise``.

    Raises:
        OptionsError: ``interval_invalid``, ``on_error_invalid``, ``log_unknown``, ``keras_backend``.
    """

    def __init__(
        self,
        batch: Batch,
        *,
        every_n_steps: int | None = None,
        every_n_epochs: int | None = None,
        log: Any = None,
        options: Options | None = None,
        on_error: OnError = "warn",
    ) -> None:
        super().__init__()
        if keras.config.backend() != "torch":
            raise OptionsError(
                f"Keras runs on {keras.config.backend()}",
                code="keras_backend",
                advice="Set the environment variable KERAS_BACKEND to torch before keras is imported, or export "
                "checkpoints as ONNX and analyse these.",
            )
        self._tracker = Tracker(
            batch, options, every_n_steps=every_n_steps, every_n_epochs=every_n_epochs, on_error=on_error
        )
        self._write = None if log is None else writer(log)
        self._fresh: Measurement | None = None
        """The last measurement of this epoch."""

    @property
    def last(self) -> Measurement | None:
        """The last measurement that succeeded."""
        return self._tracker.last

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._tracker.start(self._step)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._fresh = None

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if self._tracker.after_step(self._step):
            self._measure(logs)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self._tracker.after_epoch(epoch + 1):
            self._measure(logs)
        elif self._fresh is not None and logs is not None:
            logs.update(self._fresh.metrics)

    @property
    def _step(self) -> int:
        return int(self.model.optimizer.iterations.value)

    def _measure(self, logs: dict[str, Any] | None) -> None:
        model = self.model
        found = self._tracker.measure(
            self._step, lambda: _as_module(model, self._tracker.options), lambda: _descents(model.optimizer)
        )
        if found is None:
            return
        self._fresh = found
        if logs is not None:
            logs.update(found.metrics)
        if self._write is not None:
            self._write(found.step, found.metrics)


def _descents(optimizer: Any) -> list[Descent]:
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        optimizer = optimizer.inner_optimizer
    if not isinstance(optimizer, keras.optimizers.SGD):
        raise not_descent(type(optimizer).__name__)
    return [
        Descent(
            group=0,
            learning_rate=float(optimizer.learning_rate),
            momentum=float(optimizer.momentum),
            nesterov=bool(optimizer.nesterov),
            weight_decay=float(optimizer.weight_decay or 0.0),
            decoupled=True,
        )
    ]


class _Stateless(nn.Module):
    """A model of Keras as a function of its trainable variables, which are parameters here, and its other variables."""

    def __init__(self, model: Any, strip: Any, binary: bool) -> None:
        super().__init__()
        self._binary = binary
        self._names: list[str] = []
        for variable in model.trainable_variables:
            name = variable.path.replace(".", "_")
            while name in self._names:  # layers may share a name
                name += "_"
            self._names.append(name)
        for name, variable in zip(self._names, model.trainable_variables, strict=True):
            self.register_parameter(name, nn.Parameter(variable.value.detach().clone()))
        self._kept = [f"kept_{index}" for index, _ in enumerate(model.non_trainable_variables)]
        for name, variable in zip(self._kept, model.non_trainable_variables, strict=True):
            self.register_buffer(name, variable.value.detach().clone())

        variables = [*model.trainable_variables, *model.non_trainable_variables]
        parameters = inspect.signature(model.call).parameters
        mode = {"training": False} if "training" in parameters else {}

        def call(values: list[Tensor], inputs: Any) -> Any:
            device, dtype = str(values[0].device), str(values[0].dtype).removeprefix("torch.")
            with keras.device(device), _computing_in(model, dtype, strip), keras.StatelessScope() as scope:
                for variable, value in zip(variables, values, strict=True):
                    scope.add_update((variable, value))  # stateless_call would cast it to the variable's own dtype
                return model.call(inputs, **mode)

        # A function, since copying this module must not copy the model.
        self._call = call

    def forward(self, **inputs: Tensor) -> Tensor:
        given = inputs["x"] if inputs.keys() == {"x"} else inputs
        z = self._call([getattr(self, name) for name in (*self._names, *self._kept)], given)
        if isinstance(z, Tensor) and z.dtype != getattr(self, self._names[0]).dtype:
            raise ModelError(
                f"a layer of the model computes in {z.dtype}, whatever its policy says",
                code="keras_dtype",
                advice="Have custom layers cast to self.compute_dtype, not to a dtype by name.",
            )
        if self._binary and z.shape[-1] != 1:
            raise ModelError(
                f"binary cross-entropy of {z.shape[-1]} outputs is that of several labels for each sample",
                code="keras_multilabel",
                advice="Measure a model with one output, or one class for each sample.",
            )
        return z  # type: ignore[no-any-return]


@contextmanager
def _computing_in(model: Any, dtype: str, strip: Any) -> Iterator[None]:
    """Have Keras compute in a dtype inside the block, and the layer ``strip`` without its activation."""
    layers, shortened, floatx = keras_layers(model), keras_shortened(), keras.config.floatx()
    with ExitStack() as stack:
        for layer in layers:
            stack.callback(setattr, layer, "dtype_policy", layer.dtype_policy)
            layer.dtype_policy = dtype
        if strip is not None:
            stack.callback(setattr, strip, "activation", strip.activation)
            strip.activation = keras.activations.linear
        stack.callback(shortened.update, {"float64": shortened["float64"]})
        shortened["float64"] = dtype
        stack.callback(keras.config.set_floatx, floatx)
        keras.config.set_floatx(dtype)
        yield


def _as_module(model: Any, options: Options) -> tuple[nn.Module, Options]:
    """Return a module for a model of Keras, and the options with the meaning of its output."""
    if any(getattr(layer.dtype_policy, "quantization_mode", None) for layer in keras_layers(model)):
        raise ModelError(
            "the model is quantized", code="keras_quantized", advice="Measure the model before it is quantized."
        )
    last, binary = None, False
    if options.head == "auto":
        binary, from_logits = _meaning(model.loss)
        last = None if from_logits else _activated(model)
        head = HEADS[binary, from_logits or last is not None]
        options = options.model_copy(update={"head": head, **_smoothing(model.loss, binary, options)})
    device = options.device
    if device == "auto" and options.devices is None:
        where = model.variables[0].value.device
        options = options.model_copy(update={"device": "cpu" if where.type == "cpu" else str(where)})
    return _Stateless(model, last, binary), options


def _meaning(loss: Any) -> tuple[bool, bool]:
    """Return whether the loss takes the model's output for that of a binary classifier, and whether for logits.

    Raises:
        ModelError: ``keras_loss_unknown``.
    """
    name = loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
    if name not in LOSSES:
        raise ModelError(
            f"the model is compiled with the loss {name}, which does not say what its output means",
            code="keras_loss_unknown",
            advice="Compile it with a cross-entropy of Keras, or set head: options=wsb.Options(head='logits').",
        )
    from_logits = bool(loss.get_config()["from_logits"]) if isinstance(loss, keras.losses.Loss) else False
    return name.lower().startswith("binary"), from_logits


def _smoothing(loss: Any, binary: bool, options: Options) -> dict[str, Any]:
    """Return the settings of the compiled loss that change its Hessian, as options, unless these are set.

    Raises:
        ModelError: ``keras_loss_unknown`` for smoothing that the analysis has no option for.
    """
    config = loss.get_config() if isinstance(loss, keras.losses.Loss) else {}
    smoothing, ignored = config.get("label_smoothing") or 0.0, config.get("ignore_class")
    if binary and smoothing:
        raise ModelError(
            "the model is compiled with a binary cross-entropy of smoothed labels",
            code="keras_loss_unknown",
            advice="Smooth the labels of the batch, as probabilities, and set head: options=wsb.Options(head=…).",
        )
    found: dict[str, Any] = {}
    if smoothing and not options.label_smoothing:
        found["label_smoothing"] = smoothing
    if ignored is not None and options.ignore_index is None:
        found["ignore_index"] = ignored
    return found


def _activated(model: Any) -> Any:
    """Return the layer that applies a softmax or sigmoid to the logits; None if it isn't found."""
    try:
        last = next(layer for layer in reversed(model.layers) if layer.output is model.outputs[0])
    except (AttributeError, StopIteration, ValueError):  # a subclassed model, or a layer that is used twice
        return None
    return last if getattr(last, "activation", None) in (keras.activations.softmax, keras.activations.sigmoid) else None
