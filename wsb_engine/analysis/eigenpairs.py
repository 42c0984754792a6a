"""eigenpairs(): the largest eigenvalues with their eigenvectors, which are too large for a report."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from wsb_engine import devices
from wsb_engine.analysis import krylov
from wsb_engine.analysis.inputs import device, several
from wsb_engine.analysis.members import split
from wsb_engine.analysis.monitor import Monitor
from wsb_engine.analysis.problem import pose
from wsb_engine.arithmetic import exact
from wsb_engine.batch import Batch
from wsb_engine.bounds.certificates import Premises
from wsb_engine.bounds.rounding import Rounding
from wsb_engine.model import Classifier
from wsb_engine.options import Options
from wsb_engine.progress import ProgressCallback
from wsb_engine.spectrum.lanczos import Lanczos


@dataclass(frozen=True)
class Eigenpairs:
    """The k largest or smallest eigenvalues found; float64 on the CPU."""

    eigenvalues: Tensor
    """(k,) the outermost first: descending, or ascending if the smallest were asked for."""
    eigenvectors: Tensor
    """(P, k) orthonormal columns; entries follow the tensors of the report's ``model.parameters``, each flattened by
    rows."""
    residuals: Tensor
    """(k,) ‖Hv − θv‖ of each pair, by a fresh product."""
    converged: bool
    """True if all residuals are small and no eigenvalue beyond these is missing, up to the failure probability."""


def eigenpairs(
    classifier: Classifier,
    batch: Batch,
    options: Options | None = None,
    *,
    which: Literal["largest", "smallest"] = "largest",
    progress: ProgressCallback | None = None,
) -> Eigenpairs:
    """Compute the ``top`` largest eigenvalues of the Hessian, in algebraic order, with their eigenvectors.

    Ask for the smallest to get directions of negative curvature.

    Args:
        classifier: From ``load_model`` or ``from_module``.
        batch: N labelled samples.
        options: As for ``analyze``; those about moments and the enclosure have no effect.
        which: The end of the spectrum.
        progress: Called regularly; an exception raised in it stops the search and reaches the caller.

    Raises:
        ModelError, BatchError, OptionsError, ResourceError: with a code and advice.

    Examples:
        >>> import wsb
        >>> classifier, batch = wsb.load_model("model.onnx"), wsb.load_batch("batch.npz")
        >>> pairs = wsb.eigenpairs(classifier, batch, wsb.Options(top=2))
        >>> pairs.eigenvectors.shape, pairs.converged
        (torch.Size([51, 2]), True)
        >>> print(f"{pairs.eigenvalues[0]:.4f}")
        0.8378
    """
    options = (options or Options()).model_copy(update={"spectrum": "top"})
    chosen = several(options) or [device(options)]
    options = options.model_copy(update={"device": devices.name(chosen[0])})
    monitor = Monitor(options, progress, classifier.load_seconds + batch.load_seconds)
    with devices.faults_as_errors(), ExitStack() as stack:
        stack.enter_context(exact(gpus=any(map(devices.is_gpu, chosen))))
        with monitor.phase("setup"):
            problem = split(pose(classifier, batch, options, monitor), chosen, stack, monitor)
        with monitor.phase("spectrum"):
            shared = krylov.krylov(problem, problem.hessian_product(columns=1), options, monitor)
            if which == "smallest":
                shared.run = _mirrored(shared)
            premises = Premises(Rounding("measured", 0.0), None, options.failure_probability, options.relative_gap)
            found = krylov.top(shared, premises, options, monitor)
    found = found.divided(problem.objective.scale)
    values = -found.eigenvalues if which == "smallest" else found.eigenvalues
    return Eigenpairs(values, found.eigenvectors.cpu(), found.residuals, found.converged)


def _mirrored(shared: krylov.Krylov) -> Lanczos:
    """Return a run of −H, whose largest eigenvalues are the smallest of H."""
    run, product = shared.run, shared.product
    return Lanczos(lambda v: product.vector(v).neg_(), run.parameters, run.device, run.seed, run.unit)
