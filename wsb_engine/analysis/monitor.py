"""Clock, progress and warnings of one analysis."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from wsb_engine.costs import Estimate
from wsb_engine.errors import OptionsError, ResourceError
from wsb_engine.options import Options
from wsb_engine.progress import Decided, InterimEnclosure, Progress, ProgressCallback
from wsb_engine.report import ReportWarning

HEARTBEAT_SECONDS = 0.5
"""Seconds between calls of the progress callback within a product, through which a caller can cancel."""


class TimeLimitError(ResourceError):
    """The time limit passed before this stage had a result."""


def deciding(options: Options, decided: Decided | None) -> Decided | None:
    """Return ``decided`` if the options ask for it.

    Raises:
        OptionsError: ``policy_missing``, if they ask for it and there is none.
    """
    if options.stop == "gap":
        return None
    if decided is None:
        raise OptionsError(
            "stop is decided, and there is no policy to decide",
            code="policy_missing",
            advice="Give a policy (wsb check --policy, or policy in a request; decided in Python), or set stop to gap.",
        )
    return decided


@dataclass
class Monitor:
    """State that the stages of one analysis share."""

    options: Options
    callback: ProgressCallback | None
    load_seconds: float
    """Seconds spent reading the files before this run; part of its total."""
    decided: Decided | None = None
    """Says whether an enclosure decides all that the caller wants to know; None to narrow it to the relative gap."""
    started: float = field(default_factory=time.perf_counter)
    seconds: dict[str, float] = field(default_factory=dict)
    products: dict[str, int] = field(default_factory=dict)
    """Hessian-vector products by what they were for."""
    warnings: list[ReportWarning] = field(default_factory=list)
    current: str = ""
    one_thread: bool = False
    """As in ``Progress``."""
    enclosure: InterimEnclosure | None = None
    """As in ``Progress``."""
    estimate: Estimate | None = None
    """As in ``Progress``."""
    not_deterministic: list[str] = field(default_factory=list)
    """Operators that ran and may round in another way each time."""
    _purpose: str | None = None
    """What products are for; None for the current phase."""
    _about: str | None = None
    """What warnings are about, if not H."""
    _limited: bool = False
    _reserve: float = 0.0
    _told: float = field(default_factory=time.perf_counter)
    _fraction: float = 0.0
    _thread: int = field(default_factory=threading.get_ident)
    """The thread that calls the progress callback."""
    _products: int = 0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self.current, start = name, time.perf_counter()
        self.tell(0.0)
        yield
        self.tell(1.0)
        self.seconds[name] = time.perf_counter() - start

    @contextmanager
    def multiplying_for(self, purpose: str) -> Iterator[None]:
        """Count the products of the block apart from those of the phase."""
        before, self._purpose = self._purpose, purpose
        try:
            yield
        finally:
            self._purpose = before

    def multiplied(self, columns: int) -> None:
        """Count products."""
        purpose = self._purpose or self.current
        self.products[purpose] = self.products.get(purpose, 0) + columns

    @property
    def expired(self) -> bool:
        """True if the time limit, less the reserve, has passed."""
        return self.expires_within(0.0)

    def expires_within(self, seconds: float) -> bool:
        """Return whether the time limit, less the reserve, passes within so many seconds."""
        limit = self.options.time_limit
        return limit is not None and time.perf_counter() - self.started + seconds > limit - self._reserve

    @property
    def seconds_left(self) -> float:
        """Seconds until the time limit; infinite without one."""
        limit = self.options.time_limit
        return math.inf if limit is None else max(0.0, limit - (time.perf_counter() - self.started))

    @contextmanager
    def limited(self, reserve: float = 0.0) -> Iterator[None]:
        """Enforce the time limit inside the block; the report needs everything outside of one.

        Args:
            reserve: Seconds to leave for later work.
        """
        before = self._limited, self._reserve
        self._limited, self._reserve = True, reserve
        try:
            yield
        finally:
            self._limited, self._reserve = before

    @contextmanager
    def aside(self, about: str) -> Iterator[None]:
        """Enclose another matrix than H inside the block: warnings say so, nothing is decided, and none is published.

        Args:
            about: The other matrix, as warnings name it.
        """
        before = self._about, self.decided
        self._about, self.decided = about, None
        try:
            yield
        finally:
            self._about, self.decided = before

    def publish(self, found: InterimEnclosure) -> None:
        """Keep what is certified of H so far, for progress."""
        if self._about is None:
            self.enclosure = found.within(self.enclosure)

    @contextmanager
    def optional(self, what: str, otherwise: bool) -> Iterator[None]:
        """Leave a part out of the report if the time limit passes inside the block.

        Args:
            what: The part.
            otherwise: True if the report contains something without it.

        Raises:
            TimeLimitError: ``time_limit``, if it does not.
        """
        try:
            yield
        except TimeLimitError as error:
            if not otherwise:
                raise
            self.warn("time_limit", f"{error.message}: the report is partial, without {what}")

    def report(self, fraction: float, products: int = 0) -> None:
        """Report progress; raise if the time limit is enforced and has passed.

        Raises:
            TimeLimitError: ``time_limit``.
        """
        self.interrupt()
        self.tell(fraction, products)

    def interrupt(self) -> None:
        """Raise if the time limit is enforced and has passed; cheap enough for every chunk of samples.

        Raises:
            TimeLimitError: ``time_limit``.
        """
        if self._limited and self.expired:
            raise TimeLimitError(
                f"the time limit of {self.options.time_limit:g} s passed during {self.current}",
                code="time_limit",
                advice="Raise time_limit (wsb estimate says how long it takes), send fewer samples, or ask for less.",
                phase=self.current,
            )
        own = threading.get_ident() == self._thread
        if own and time.perf_counter() - self._told > HEARTBEAT_SECONDS:
            self.tell(self._fraction, self._products)

    def tell(self, fraction: float, products: int = 0) -> None:
        """Report progress, whatever the time."""
        self._told, self._fraction, self._products = time.perf_counter(), fraction, products
        if self.callback is not None:
            self.callback(
                Progress(
                    phase=self.current,
                    fraction=fraction,
                    hessian_vector_products=products,
                    one_thread=self.one_thread,
                    enclosure=self.enclosure,
                    estimate=self.estimate,
                )
            )

    def warn(self, code: str, message: str) -> None:
        warning = ReportWarning(code=code, message=message if self._about is None else f"{self._about}: {message}")
        if warning not in self.warnings:
            self.warnings.append(warning)

    def forget(self, *codes: str) -> None:
        """Drop warnings of what a later stage does again."""
        self.warnings[:] = [warning for warning in self.warnings if warning.code not in codes]

    def timings(self) -> dict[str, float]:
        elapsed = time.perf_counter() - self.started
        return {"load": self.load_seconds, **self.seconds, "total": self.load_seconds + elapsed}
