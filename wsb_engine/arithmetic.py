"""How to have torch compute exactly and reproducibly while an analysis runs."""

from __future__ import annotations

import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch

CUBLAS_WORKSPACE = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
"""Variable and value with which matrix products on CUDA are deterministic; read when CUDA starts."""
_NOT_DETERMINISTIC = re.compile(r"(\S+) does not have a deterministic implementation|CuBLAS and you have CUDA")

_LISTENERS: list[list[str]] = []
"""Lists that receive names of operators, one of each analysis."""


class _Shared:
    """A setting of this process that several analyses need at once: the first sets it, the last restores it."""

    def __init__(self, setting: Callable[[ExitStack], None]) -> None:
        self._setting, self._lock = setting, threading.Lock()
        self._users, self._stack = 0, ExitStack()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            if self._users == 0:
                with ExitStack() as stack:
                    self._setting(stack)
                    self._stack = stack.pop_all()
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0:
                    self._stack.close()


@contextmanager
def exact(gpus: bool) -> Iterator[list[str]]:
    """Compute in IEEE float32 and float64 inside the block, and on GPUs deterministically where torch can.

    TensorFloat-32 and bfloat16 in place of float32, which torch allows in convolutions on GPUs unless told otherwise,
    have errors that no bound of a report covers. The settings are the process's: they are restored when the last of
    several analyses ends.

    Args:
        gpus: Whether GPUs are used.

    Yields:
        A list that receives the names of operators that have no deterministic form, at the latest at the end.
    """
    noted: list[str] = []
    with ExitStack() as stack:
        stack.enter_context(_IEEE())
        if gpus:
            stack.enter_context(_DETERMINISTIC())
            stack.enter_context(_noting(noted))
        yield noted


def _ieee(stack: ExitStack) -> None:
    settings = _float32_settings()
    for owner, name in settings:
        stack.callback(setattr, owner, name, getattr(owner, name))
    _old_settings_too(stack)
    for owner, name in settings:
        setattr(owner, name, False if name == "allow_tf32" else "ieee")


def _float32_settings() -> list[tuple[Any, str]]:
    """List who says what float32 means for an operator, and under which name."""
    backends: Any = torch.backends
    if not hasattr(backends.cudnn, "conv"):  # before torch 2.9
        return [(backends.cudnn, "allow_tf32"), (backends.cuda.matmul, "allow_tf32")]
    owners: list[Any] = [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn]
    owners += [backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn]
    return [(owner, "fp32_precision") for owner in owners]


def _old_settings_too(stack: ExitStack) -> None:
    """Set what torch had before these settings alike: it refuses to work where the two contradict each other."""
    with suppress(RuntimeError):  # they do already
        stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
        torch.set_float32_matmul_precision("highest")
    with suppress(RuntimeError):
        stack.callback(setattr, torch.backends.cudnn, "allow_tf32", torch.backends.cudnn.allow_tf32)
        torch.backends.cudnn.allow_tf32 = False


def _deterministic(stack: ExitStack) -> None:
    os.environ.setdefault(*CUBLAS_WORKSPACE)
    was, warned = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    stack.callback(torch.use_deterministic_algorithms, was, warn_only=warned)
    filling: Any = torch.utils.deterministic
    stack.callback(setattr, filling, "fill_uninitialized_memory", filling.fill_uninitialized_memory)
    filling.fill_uninitialized_memory = False  # no kernel reads what it has not written
    torch.use_deterministic_algorithms(True, warn_only=True)
    stack.enter_context(warnings.catch_warnings())
    warnings.filterwarnings("always", message=f".*({_NOT_DETERMINISTIC.pattern})")
    _replace_showwarning(stack)


def _replace_showwarning(stack: ExitStack) -> None:
    """Have warnings of operators that are not deterministic noted instead of shown."""
    shown = warnings.showwarning

    def show(message: Warning | str, *where: Any, **others: Any) -> None:
        found = _NOT_DETERMINISTIC.search(str(message))
        if found is None:
            shown(message, *where, **others)
            return
        name = (found[1] or "cuBLAS").removeprefix("aten::")
        for noted in list(_LISTENERS):
            if name not in noted:
                noted.append(name)

    warnings.showwarning = show


@contextmanager
def _noting(noted: list[str]) -> Iterator[None]:
    _LISTENERS.append(noted)
    try:
        yield
    finally:
        with suppress(ValueError):
            _LISTENERS[:] = [each for each in _LISTENERS if each is not noted]


_IEEE, _DETERMINISTIC = _Shared(_ieee), _Shared(_deterministic)
