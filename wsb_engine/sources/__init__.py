"""Reads labelled samples from the files and objects that people have, for ``wsb batch`` and ``Batch``.

One module a kind of source; each returns ``Samples``, plain arrays that a ``Batch`` then checks.
"""
