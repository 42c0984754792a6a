"""The callback of a plain training loop."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer

from wsb_engine.batch import Batch
from wsb_engine.callbacks.measurement import Measurement
from wsb_engine.callbacks.stability import of_torch
from wsb_engine.callbacks.tracker import OnError, Tracker
from wsb_engine.callbacks.writers import writer
from wsb_engine.options import Options


class LoopCallback:
    """Measures λ_max every n steps of a plain loop, which calls it after each step.

    Args:
        module: As of ``measure``.
        batch: As of ``measure``.
        every_n_steps: Measures whenever the number of steps passes a multiple of this.
        optimizer: As of ``measure``; its settings are read at each measurement.
        log: Where metrics go: a function of (step, metrics), a ``SummaryWriter`` of TensorBoard, a run of W&B, or the
            module ``mlflow``. None to use what calls return.
        options: As of ``measure``.
        on_error: ``warn`` to go on after a failed measurement, with one warning for each kind of failure; or ``raise``.

    Raises:
        OptionsError: ``interval_invalid``, ``on_error_invalid``, ``log_unknown``.

    Examples:
        >>> import torch
        >>> import wsb
        >>> module = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3))
        >>> sgd = torch.optim.SGD(module.parameters(), lr=0.1)
        >>> batch, seen = wsb.load_batch("batch.npz"), []
        >>> sharpness = wsb.callbacks.LoopCallback(
        ...     module, batch, every_n_steps=2, optimizer=sgd, log=lambda step, metrics: seen.append(step)
        ... )
        >>> for step in range(1, 6):
        ...     sgd.step()
        ...     found = sharpness(step)
        >>> seen
        [2, 4]
        >>> sharpness.last.lambda_max.lower <= sharpness.last.metrics["wsb/lambda_max"]
        True
    """

    def __init__(
        self,
        module: nn.Module,
        batch: Batch,
        *,
        every_n_steps: int = 1,
        optimizer: Optimizer | Iterable[Optimizer] | None = None,
        log: Any = None,
        options: Options | None = None,
        on_error: OnError = "warn",
    ) -> None:
        self._tracker = Tracker(batch, options, every_n_steps=every_n_steps, on_error=on_error)
        self._module, self._write = module, None if log is None else writer(log)
        self._optimizer = optimizer if optimizer is None or hasattr(optimizer, "param_groups") else list(optimizer)

    @property
    def last(self) -> Measurement | None:
        """The last measurement that succeeded."""
        return self._tracker.last

    def __call__(self, step: int) -> Measurement | None:
        """Measure if it is time to.

        Args:
            step: Number of optimizer steps taken so far.

        Returns:
            The measurement; None if it was not time, another process measures, or it failed.
        """
        if not self._tracker.after_step(step):
            return None
        optimizer, module = self._optimizer, self._module
        descents = None if optimizer is None else lambda: of_torch(optimizer, module)
        found = self._tracker.measure(step, lambda: (module, self._tracker.options), descents)
        if found is not None and self._write is not None:
            self._write(step, found.metrics)
        return found
