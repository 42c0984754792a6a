"""What the code of a failed analysis says about whose fault it was."""

from __future__ import annotations

_BREAKDOWNS = frozenset(
    {
        "blob_corrupt",
        "blob_missing",
        "confinement_failed",
        "fork_failed",
        "internal_error",
        "invalid_report",
        "out_of_memory",
        "sandbox_insufficient",
    }
)
_BREAKDOWN_PREFIXES = ("worker_", "zygote_")
_LIMITS = frozenset({"memory_limit", "time_limit", "time_limit_exceeded"})


def is_service_failure(code: str) -> bool:
    """Whether the analysis broke down through no fault of its input."""
    return code in _BREAKDOWNS or code.startswith(_BREAKDOWN_PREFIXES)


def is_limit(code: str) -> bool:
    """Whether the analysis needed more time or memory than it was allowed."""
    return code in _LIMITS
