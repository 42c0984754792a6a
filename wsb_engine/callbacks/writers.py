"""Where metrics of a plain loop go: a function, or the logger that the loop has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from wsb_engine.callbacks.measurement import PREFIX
from wsb_engine.errors import OptionsError

Write = Callable[[int, Mapping[str, float]], object]
"""Takes the number of optimizer steps, and metrics by name."""

STEP = PREFIX + "step"
"""W&B counts calls as steps, and drops what comes late: there, metrics are plotted over this one."""


def writer(log: Any) -> Write:
    """Return what writes metrics to a logger.

    Args:
        log: A function of (step, metrics), a ``SummaryWriter`` of TensorBoard, a run of W&B, or an object with
            ``log_metrics(metrics, step=…)`` such as the module ``mlflow`` and the loggers of Lightning.

    Raises:
        OptionsError: ``log_unknown``.
    """
    if hasattr(log, "add_scalar"):
        return _tensorboard(log)
    if hasattr(log, "define_metric"):
        return _wandb(log)
    if hasattr(log, "log_metrics"):
        return lambda step, metrics: log.log_metrics(dict(metrics), step=step)
    if callable(log):
        return log  # type: ignore[no-any-return]
    raise OptionsError(
        f"log is a {type(log).__name__}, which takes no metrics",
        code="log_unknown",
        advice="Give a function of (step, metrics), a SummaryWriter, a run of W&B, or the module mlflow.",
    )


def _tensorboard(log: Any) -> Write:
    def write(step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            log.add_scalar(name, value, step)

    return write


def _wandb(log: Any) -> Write:
    log.define_metric(STEP)
    log.define_metric(PREFIX + "*", step_metric=STEP)
    return lambda step, metrics: log.log({**metrics, STEP: step})
