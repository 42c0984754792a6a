"""verify(): a report, and the model and batch that it is about, to findings on every claim."""

from __future__ import annotations

from typing import overload

from wsb_engine.batch import Batch
from wsb_engine.errors import OptionsError
from wsb_engine.model import Classifier
from wsb_engine.optimizer_state import StateSource
from wsb_engine.progress import ProgressCallback
from wsb_engine.report import Report
from wsb_engine.verification.consistency import check_consistency
from wsb_engine.verification.enclosure import check_enclosure
from wsb_engine.verification.findings import UNCHECKED, Ledger, Verification
from wsb_engine.verification.independent import check_independently
from wsb_engine.verification.moments import check_moments
from wsb_engine.verification.replay import compare_exactly, compare_nearly, is_exact, options_of, repeat
from wsb_engine.verification.spectrum import check_spectrum
from wsb_engine.verification.theorems import precisely

REPEATED = "repeated, but another machine or version need not agree on it"


@overload
def verify(report: Report) -> Verification: ...


@overload
def verify(
    report: Report,
    classifier: Classifier,
    batch: Batch,
    *,
    progress: ProgressCallback | None = None,
    optimizer_state: StateSource | None = None,
) -> Verification: ...


def verify(
    report: Report,
    classifier: Classifier | None = None,
    batch: Batch | None = None,
    *,
    progress: ProgressCallback | None = None,
    optimizer_state: StateSource | None = None,
) -> Verification:
    """Derive the numbers of a report again, and say which of its claims do not hold.

    From the report alone: bounds and enclosures by their theorems in ball arithmetic, sums, order, checks, citations.
    With model and batch the analysis is repeated from its seed and compared, to the last bit if machine and versions
    are the same, and small problems are differentiated once more by torch's own loss.

    Args:
        report: The report.
        classifier: Model that it is about; None to check what the report alone allows.
        batch: Batch that it is about; None if ``classifier`` is.
        progress: As of ``analyze``; an exception raised in it stops the verification.
        optimizer_state: As of ``analyze``; without it what rests on such a state is not checked.

    Raises:
        OptionsError: ``batch_missing`` if only one of classifier and batch is given.
        ModelError, BatchError, OptionsError, ResourceError: as ``analyze``, if the analysis can't be repeated.

    Examples:
        >>> import wsb
        >>> classifier, batch = wsb.load_model("model.onnx"), wsb.load_batch("batch.npz")
        >>> report = wsb.analyze(classifier, batch)
        >>> found = wsb.verify(report, classifier, batch)
        >>> found.passed, found.exact
        (True, True)
    """
    if (classifier is None) != (batch is None):
        raise OptionsError(
            "a model without its batch, or a batch without its model, repeats nothing",
            code="batch_missing",
            advice="Give both, or neither to check what the report alone allows.",
        )
    ledger = Ledger()
    check_report(report, ledger)
    if classifier is None or batch is None:
        ledger.complete(report, UNCHECKED)
        return ledger.result(repeated=False, exact=None)
    again = repeat(report, classifier, batch, progress, optimizer_state)
    exact = compare(report, again, ledger)
    check_independently(report, classifier, batch, options_of(report)[0], ledger)
    ledger.complete(report, REPEATED)
    return ledger.result(repeated=True, exact=exact)


def check_report(report: Report, ledger: Ledger) -> None:
    """Check what the report alone allows."""
    check_consistency(report, ledger)
    with precisely():
        check_moments(report, ledger)
    check_enclosure(report, ledger)
    check_spectrum(report, ledger)


def compare(report: Report, again: Report, ledger: Ledger) -> bool:
    """Compare a report with a repeated one; return whether to the last bit."""
    exact = is_exact(report, again)
    if exact:
        compare_exactly(report, again, ledger)
    else:
        compare_nearly(report, again, ledger)
    return exact
