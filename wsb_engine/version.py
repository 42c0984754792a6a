"""The version, in a module that imports nothing heavy."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("wsb-sharpness")
except PackageNotFoundError:  # a checkout on the path, which nobody has installed
    __version__ = "0.0.0"
