"""What every child would otherwise do at first: the zygote imports it, and its children find it done."""

from __future__ import annotations

import encodings.cp437  # noqa: F401  (the names in an .npz file are decoded with it)

import onnx

from service.child.rehearsal import rehearse
from service.sandbox.grants import gpu_devices
from wsb_engine.internals import import_compiler

# Looking for the first operator is what registers all of them.
onnx.defs.has("Identity")
import_compiler()

# Where there is a GPU, torch starts a thread for it with the first gradient, and the zygote may have one only.
if not gpu_devices(True):
    rehearse()
