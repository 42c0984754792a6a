"""Checks of an archive before torch loads it: its members, pickles and code, from their bytes alone."""
