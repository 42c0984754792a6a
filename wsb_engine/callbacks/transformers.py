"""The callback of the Trainer of Hugging Face's transformers."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import TrainerCallback

from wsb_engine.batch import Batch
from wsb_engine.callbacks.measurement import Measurement
from wsb_engine.callbacks.stability import of_torch
from wsb_engine.callbacks.tracker import OnError, Tracker
from wsb_engine.options import Options


class TransformersCallback(TrainerCallback):  # type: ignore[misc]
    """Measures λ_max while a ``Trainer`` of transformers trains, and logs it by ``trainer.log``.

    Add it to the trainer that it logs to: ``trainer.add_callback(TransformersCallback(trainer, batch))``.

    Args:
        trainer: The trainer. What it reports to and ``trainer.state.log_history`` get the metrics.
        batch: As of ``measure``; its inputs have the names of the model's arguments, such as ``input_ids``.
        every_n_steps: Measures whenever ``trainer.state.global_step`` passes a multiple of this.
        every_n_epochs: Measures after every n-th epoch; every epoch if neither is given.
        module: The module from inputs to logits; by default the trainer's model.
        options: As of ``measure``.
        on_error: ``warn`` to go on after a failed measurement, with one warning for each kind of failure; or ``raise``.

    Raises:
        OptionsError: ``interval_invalid``, ``on_error_invalid``.
    """

    def __init__(
        self,
        trainer: Any,
        batch: Batch,
        *,
        every_n_steps: int | None = None,
        every_n_epochs: int | None = None,
        module: nn.Module | None = None,
        options: Options | None = None,
        on_error: OnError = "warn",
    ) -> None:
        self._tracker = Tracker(
            batch, options, every_n_steps=every_n_steps, every_n_epochs=every_n_epochs, on_error=on_error
        )
        self._trainer, self._module = trainer, module

    @property
    def last(self) -> Measurement | None:
        """The last measurement that succeeded."""
        return self._tracker.last

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._tracker.start(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if self._tracker.after_step(state.global_step):
            self._measure(state, control, given["model"], given["optimizer"])

    def on_epoch_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if self._tracker.after_epoch(round(state.epoch)):
            self._measure(state, control, given["model"], given["optimizer"])

    def _measure(self, state: Any, control: Any, model: nn.Module, optimizer: Any) -> None:
        module = model if self._module is None else self._module
        found = self._tracker.measure(
            state.global_step, lambda: (module, self._options()), lambda: of_torch(optimizer, module)
        )
        if found is None:
            return
        before = control.should_log
        self._trainer.log(found.metrics)
        # Logging withdraws the request to log, which is for the training's own loss.
        control.should_log = before

    def _options(self) -> Options:
        """Return the options, with the trainer's smoothing of labels unless they have one."""
        options, smoothing = self._tracker.options, self._trainer.args.label_smoothing_factor
        return options if options.label_smoothing else options.model_copy(update={"label_smoothing": smoothing})
