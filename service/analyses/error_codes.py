"""Classes of the error codes of analyses: failures of the service, exceeded limits; all others are about the input."""

from __future__ import annotations

_SERVICE_FAILURES = frozenset(
    {
        "blob_corrupt",
        "blob_missing",
        "confinement_failed",
        "device_failed",
        "fork_failed",
        "internal_error",
        "invalid_report",
        "out_of_memory",
        "sandbox_insufficient",
    }
)
_SERVICE_FAILURE_PREFIXES = ("worker_", "zygote_")
_LIMITS = frozenset({"memory_limit", "time_limit", "time_limit_exceeded"})


def is_service_failure(code: str) -> bool:
    """Whether the analysis failed for a reason other than its input."""
    return code in _SERVICE_FAILURES or code.startswith(_SERVICE_FAILURE_PREFIXES)


def is_limit(code: str) -> bool:
    """Whether the analysis exceeded its limit on time or memory."""
    return code in _LIMITS
