"""What all callbacks share: when to measure, which process measures, and what becomes of a failure."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Sequence
from typing import Literal

import torch.distributed as dist
from torch import nn

from wsb_engine.batch import Batch
from wsb_engine.callbacks.measurement import Measurement, measured
from wsb_engine.callbacks.stability import Descent
from wsb_engine.errors import EngineError, OptionsError, first_line
from wsb_engine.options import Options

if dist.is_available():
    # As in wsb_engine.distributed: an analysis imports it, which must not be after a group has been created.
    importlib.import_module("torch.distributed.nn.functional")

OnError = Literal["warn", "raise"]


class Tracker:
    """Measures every so many steps or epochs, in the first process of a group alone.

    Args:
        batch: As of ``measure``.
        options: As of ``measure``.
        every_n_steps: Measures whenever the number of optimizer steps passes a multiple of this.
        every_n_epochs: Measures after every n-th epoch; every epoch if neither is given.
        on_error: ``warn`` to go on training after a failed measurement, with one warning for each kind of failure;
            ``raise`` to end the training.

    Raises:
        OptionsError: ``interval_invalid``, ``on_error_invalid``.
    """

    def __init__(
        self,
        batch: Batch,
        options: Options | None,
        *,
        every_n_steps: int | None = None,
        every_n_epochs: int | None = None,
        on_error: OnError = "warn",
    ) -> None:
        given = [each for each in (every_n_steps, every_n_epochs) if each is not None]
        if len(given) > 1 or any(isinstance(each, bool) or not isinstance(each, int) or each < 1 for each in given):
            raise OptionsError(
                f"every_n_steps is {every_n_steps!r} and every_n_epochs is {every_n_epochs!r}",
                code="interval_invalid",
                advice="Give one of them, as an integer of at least 1, or neither to measure after each epoch.",
            )
        if on_error not in ("warn", "raise"):
            raise OptionsError(f"on_error is {on_error!r}", code="on_error_invalid", advice="Give 'warn' or 'raise'.")
        self.last: Measurement | None = None
        """The last measurement that succeeded."""
        self._batch, self._options, self._on_error = batch, options or Options(), on_error
        self._steps = every_n_steps
        self._epochs = every_n_epochs if given else 1
        self._seen: int | None = None
        """Steps that the last call counted."""
        self._warned: set[str] = set()

    def start(self, step: int) -> None:
        """Begin or resume a training that has taken so many steps."""
        self._seen = step

    def after_step(self, step: int) -> bool:
        """Return whether to measure after so many steps; at most once for each number of steps."""
        before, self._seen = self._seen, step
        if self._steps is None or step == before:
            return False
        if before is None or step < before:
            return step % self._steps == 0
        return step // self._steps > before // self._steps

    def after_epoch(self, epochs: int) -> bool:
        """Return whether to measure after so many whole epochs."""
        return self._epochs is not None and epochs % self._epochs == 0

    def measure(
        self,
        step: int,
        module: Callable[[], tuple[nn.Module, Options]],
        descents: Callable[[], Sequence[Descent]] | None,
    ) -> Measurement | None:
        """Measure, unless another process does; None if it failed.

        Args:
            step: Number of optimizer steps taken.
            module: Returns the module, and the options for it; called only to measure.
            descents: As of ``measured``.

        Raises:
            Exception: whatever failed, with ``on_error="raise"``.
        """
        if dist.is_available() and dist.is_initialized() and dist.get_rank() > 0:
            return None
        try:
            taken, options = module()
            found = measured(taken, self._batch, options, step, descents)
        except Exception as error:
            if self._on_error == "raise":
                raise
            self._warn(step, error)
            return None
        if found.no_ratio is not None:
            self._once("no_ratio", f"no wsb/stability_ratio: {found.no_ratio}")
        self.last = found
        return found

    @property
    def options(self) -> Options:
        return self._options

    def _warn(self, step: int, error: Exception) -> None:
        if isinstance(error, EngineError):
            code, words = error.code, str(error)
        else:
            code = type(error).__name__
            words = f"{first_line(error)} [{code}] Set on_error='raise' to see where it failed."
        self._once(code, f"λ_max was not measured after step {step}, and training goes on: {words}")

    def _once(self, code: str, message: str) -> None:
        if code not in self._warned:
            self._warned.add(code)
            warnings.warn(message, stacklevel=2)
