"""The version, which no other module of the package is needed for."""

__version__ = "0.1.0"
