"""Work that every child would otherwise repeat: the zygote does it once by importing this module."""

from __future__ import annotations

import encodings.cp437  # noqa: F401  (decodes the names in an .npz file)

import onnx

from service.child.sample_analysis import run_sample_analysis
from service.sandbox.grants import gpu_devices
from wsb_engine.internals import import_compiler

# Looking up the first operator registers all of them.
onnx.defs.has("Identity")
import_compiler()

# With a GPU, torch starts a thread for it at the first gradient, and the zygote may have only one thread.
if not gpu_devices(True):
    run_sample_analysis()
