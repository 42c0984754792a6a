"""λ_max during training: callbacks for PyTorch Lightning, transformers, Keras and plain loops.

Each measures the module on a fixed batch every so many steps or epochs, as ``analyze`` does, and logs λ_max with its
interval, the loss, and how close the optimizer's steps are to the edge of stability. Training goes on as if nothing had
been measured. docs/training.md has an example for each.

- ``LoopCallback`` is called by a plain loop after each step.
- ``LightningCallback`` goes into ``Trainer(callbacks=[…])``.
- ``TransformersCallback`` goes into ``trainer.add_callback(…)``.
- ``KerasCallback`` goes into ``model.fit(callbacks=[…])``, on the torch backend.
- ``measure`` returns one ``Measurement``, wherever it is called.

A name is loaded when it is first used, and a framework with the name that needs it.
"""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsb_engine.callbacks.keras import KerasCallback
    from wsb_engine.callbacks.lightning import LightningCallback
    from wsb_engine.callbacks.loop import LoopCallback
    from wsb_engine.callbacks.measurement import Measurement, measure
    from wsb_engine.callbacks.transformers import TransformersCallback

_MODULES = {
    "KerasCallback": "keras",
    "LightningCallback": "lightning",
    "LoopCallback": "loop",
    "Measurement": "measurement",
    "TransformersCallback": "transformers",
    "measure": "measurement",
}
_FRAMEWORKS = {
    "keras": ("Keras", ("keras",), "keras"),
    "lightning": ("PyTorch Lightning", ("lightning", "pytorch_lightning"), "lightning"),
    "transformers": ("transformers", ("transformers",), "'transformers[torch]'"),
}
"""By module: what its framework is called, is imported as, and is installed by."""

__all__ = [
    "KerasCallback",
    "LightningCallback",
    "LoopCallback",
    "Measurement",
    "TransformersCallback",
    "measure",
]


def _is_missing(module: str) -> bool:
    return module in _FRAMEWORKS and not any(map(find_spec, _FRAMEWORKS[module][1]))


if not TYPE_CHECKING:  # type checkers would allow any name

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = _MODULES[name]
        if _is_missing(module):
            called, _, package = _FRAMEWORKS[module]
            raise ImportError(f"{name} needs {called}, which is not installed: pip install {package}")
        return getattr(importlib.import_module(f"{__name__}.{module}"), name)


def __dir__() -> list[str]:
    # help() and completion look every name up.
    return [name for name in __all__ if not _is_missing(_MODULES[name])]
