"""The callback of PyTorch Lightning, as ``lightning`` or ``pytorch_lightning``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from wsb_engine.batch import Batch
from wsb_engine.callbacks.measurement import Measurement
from wsb_engine.callbacks.stability import of_torch
from wsb_engine.callbacks.tracker import OnError, Tracker
from wsb_engine.options import Options

# Both packages have all classes, and a trainer takes its own: the one that is in use already decides.
if TYPE_CHECKING or "pytorch_lightning" not in sys.modules or "lightning.pytorch" in sys.modules:
    try:
        from lightning.pytorch import Callback
    except ModuleNotFoundError:
        from pytorch_lightning import Callback
else:
    from pytorch_lightning import Callback


class LightningCallback(Callback):  # type: ignore[misc]
    """Measures λ_max while a ``Trainer`` of Lightning trains, and logs it to the trainer's loggers.

    With one process, other callbacks such as ``EarlyStopping`` and ``ModelCheckpoint`` can monitor the metrics.

    Args:
        batch: As of ``measure``.
        every_n_steps: Measures whenever ``trainer.global_step`` passes a multiple of this.
        every_n_epochs: Measures after every n-th epoch; every epoch if neither is given.
        module: The module from inputs to logits; by default the LightningModule, by its ``forward``.
        options: As of ``measure``.
        on_error: ``warn`` to go on after a failed measurement, with one warning for each kind of failure; or ``raise``.

    Raises:
        OptionsError: ``interval_invalid``, ``on_error_invalid``.
    """

    def __init__(
        self,
        batch: Batch,
        *,
        every_n_steps: int | None = None,
        every_n_epochs: int | None = None,
        module: nn.Module | None = None,
        options: Options | None = None,
        on_error: OnError = "warn",
    ) -> None:
        super().__init__()
        self._tracker = Tracker(
            batch, options, every_n_steps=every_n_steps, every_n_epochs=every_n_epochs, on_error=on_error
        )
        self._module = module

    @property
    def last(self) -> Measurement | None:
        """The last measurement that succeeded."""
        return self._tracker.last

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._tracker.start(trainer.global_step)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._tracker.after_step(trainer.global_step):
            self._measure(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if self._tracker.after_epoch(trainer.current_epoch + 1):
            self._measure(trainer, pl_module)

    def _measure(self, trainer: Any, pl_module: Any) -> None:
        module = pl_module if self._module is None else self._module
        found = self._tracker.measure(
            trainer.global_step, lambda: (module, self._tracker.options), lambda: of_torch(trainer.optimizers, module)
        )
        if found is None:
            return
        for logger in trainer.loggers:
            # Not by pl_module.log, which drops what comes between the steps of log_every_n_steps.
            logger.log_metrics(found.metrics, step=found.step)
        if trainer.world_size == 1:  # others would monitor what they don't have
            trainer.callback_metrics.update({name: torch.tensor(value) for name, value in found.metrics.items()})
