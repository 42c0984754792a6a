"""Problems of analyses."""

from __future__ import annotations

from typing import ClassVar

from service.analyses.error_codes import is_service_failure
from service.analyses.table import AnalysisRow
from service.errors import NotFoundError, ServiceError


class AnalysisNotFoundError(NotFoundError, code="analysis_not_found", title="No such analysis"): ...


class DeviceUnavailableError(
    ServiceError, status=422, code="device_unavailable", title="No worker has the requested device"
): ...


class PolicyMissingError(
    ServiceError, status=422, code="policy_missing", title="To stop when it is decided, an analysis needs a policy"
): ...


class BaselineDecidedError(
    ServiceError, status=422, code="baseline_decided", title="The baseline stopped as soon as its policy was decided"
): ...


class BaselineNotFoundError(NotFoundError, code="baseline_not_found", title="No such baseline"): ...


class BaselineNewerError(
    ServiceError, status=409, code="baseline_newer", title="The baseline is newer than the analysis"
): ...


class BaselinesFullError(ServiceError, status=409, code="baselines_full", title="There are too many baselines"): ...


class AnalysisIsBaselineError(
    ServiceError, status=409, code="analysis_is_baseline", title="The analysis is a baseline and can't be deleted"
): ...


class QueueFullError(ServiceError, status=429, code="queue_full", title="Too many analyses are waiting"): ...


class TenantQueueFullError(
    ServiceError, status=429, code="tenant_queue_full", title="Too many analyses of this API key are waiting"
): ...


class IdempotencyMismatchError(
    ServiceError, status=422, code="idempotency_mismatch", title="The Idempotency-Key was used for a different request"
): ...


class AnalysisLiveError(
    ServiceError, status=409, code="analysis_live", title="The analysis has not ended yet and can't be deleted"
): ...


class AnalysisFinalError(ServiceError, status=409, code="analysis_final", title="The analysis has already ended"): ...


class ReportNotReadyError(
    ServiceError, status=409, code="report_not_ready", title="The analysis has not ended yet"
): ...


class NoReportError(ServiceError, status=409, code="no_report", title="The analysis ended without a report"): ...


class _EndedError(ServiceError):
    """An analysis that ended without a report while the client waited; the code says why."""

    codes: ClassVar[tuple[str, ...] | None] = ()


class AnalysisRejectedError(
    _EndedError, status=422, code="analysis_rejected", title="The model, the batch or the options can't be analysed"
): ...


class AnalysisCrashedError(_EndedError, status=500, code="crashed", title="The analysis failed unexpectedly"): ...


class AnalysisTimedOutError(
    _EndedError, status=504, code="timed_out", title="The analysis took longer than its time limit"
):
    codes = ("time_limit_exceeded",)


class AnalysisCancelledError(_EndedError, status=409, code="cancelled", title="The analysis was cancelled"):
    codes = ("cancelled",)


def not_found(analysis: str) -> AnalysisNotFoundError:
    return AnalysisNotFoundError(f"There is no analysis {analysis[:80]}.")


def ended(row: AnalysisRow) -> ServiceError:
    """Return the problem of an analysis that ended without a report."""
    error = row.error or {}
    kinds: dict[str, type[_EndedError]] = {"timed_out": AnalysisTimedOutError, "cancelled": AnalysisCancelledError}
    code = str(error.get("code") or row.state)
    kind = kinds.get(row.state) or (AnalysisCrashedError if is_service_failure(code) else AnalysisRejectedError)
    return kind(
        str(error.get("message") or kind.title + "."),
        code=code,
        advice=error.get("advice") or None,
        headers={"Location": f"/v1/analyses/{row.id}"},
        analysis=str(row.id),
        details=error.get("details") or None,
    )
