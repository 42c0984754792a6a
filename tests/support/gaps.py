"""The property under which a test hands over how narrow its intervals are, for the summary of a run."""

GAPS = "relative gaps by kind"
