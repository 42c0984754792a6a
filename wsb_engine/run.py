"""Clock, progress and warnings of one analysis."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from wsb_engine.errors import ResourceError
from wsb_engine.options import Options
from wsb_engine.progress import Progress, ProgressCallback
from wsb_engine.report import ReportWarning


class TimeLimitError(ResourceError):
    """Time passed before anything of this stage could be had."""


@dataclass
class Run:
    """What the stages of one analysis share: nothing else does."""

    options: Options
    callback: ProgressCallback | None
    load_seconds: float
    """Spent on reading the files, before this run; part of its total."""
    started: float = field(default_factory=time.perf_counter)
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[ReportWarning] = field(default_factory=list)
    current: str = ""
    one_thread: bool = False
    """As in the progress."""

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self.current, start = name, time.perf_counter()
        self.tell(0.0)
        yield
        self.tell(1.0)
        self.seconds[name] = time.perf_counter() - start

    @property
    def expired(self) -> bool:
        """Whether the time limit has passed."""
        limit = self.options.time_limit
        return limit is not None and time.perf_counter() - self.started > limit

    def report(self, fraction: float, products: int = 0) -> None:
        """Tells the caller; raises once the time limit has passed.

        Raises:
            TimeLimitError: ``time_limit``.
        """
        if self.expired:
            raise TimeLimitError(
                f"the time limit of {self.options.time_limit:g} s passed during {self.current}",
                code="time_limit",
                advice="Raise time_limit, send fewer samples, or ask for less.",
                phase=self.current,
            )
        self.tell(fraction, products)

    def tell(self, fraction: float, products: int = 0) -> None:
        """Tells the caller, whatever the time."""
        if self.callback is not None:
            self.callback(
                Progress(
                    phase=self.current,
                    fraction=fraction,
                    hessian_vector_products=products,
                    one_thread=self.one_thread,
                )
            )

    def warn(self, code: str, message: str) -> None:
        warning = ReportWarning(code=code, message=message)
        if warning not in self.warnings:
            self.warnings.append(warning)

    def timings(self) -> dict[str, float]:
        elapsed = time.perf_counter() - self.started
        return {"load": self.load_seconds, **self.seconds, "total": self.load_seconds + elapsed}
