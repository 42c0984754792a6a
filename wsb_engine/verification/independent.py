"""Loss, gradient, products, moments and spectrum once more, by torch's own loss and plain double backward.

Shares with an analysis the reader of the file and the random start vector, and nothing else: neither its losses, nor
its products, nor its closed form.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from wsb_engine.analysis.monitor import Monitor
from wsb_engine.analysis.problem import Problem, pose
from wsb_engine.batch import Batch
from wsb_engine.model import Classifier
from wsb_engine.options import Options
from wsb_engine.report import Report
from wsb_engine.spectrum.run import on_sphere
from wsb_engine.verification.findings import Ledger
from wsb_engine.verification.replay import settled
from wsb_engine.verification.theorems import UNIT

STEPS = 8
"""Lanczos steps that are repeated at most."""
PARAMETERS = 1000
"""Most parameters for which H is formed."""
OPERATIONS = 1e10
"""Operations of a product up to which this is done at all, on a CPU a few seconds."""
FORMING = 3e11
"""Operations up to which H is formed."""
LEAST_CURVATURE = 1e-6
"""Mean p (1 − p) below which torch's loss leaves too few digits of its second derivative."""
HALF = math.sqrt(UNIT)
HOW = "torch's own loss and double backward, in float64"


@dataclass(frozen=True)
class Plain:
    """The loss of a batch as torch writes it."""

    problem: Problem
    sample_losses: Callable[[Tensor], Tensor]
    """(N, C) logits → (N,), divided so that the weighted sum is the loss."""
    weights: Tensor
    """(N,) of sum 1, divided by the mass of the labels."""

    def loss(self, point: list[Tensor]) -> Tensor:
        objective = self.problem.objective
        selected = dict(zip(objective.selected, point, strict=True))
        rows = slice(0, objective.samples)
        z = objective.function({**objective.fixed, **selected}, objective.chunk_inputs(rows))
        return (self.weights * self.sample_losses(z)).sum()

    def point(self) -> list[Tensor]:
        return [tensor.detach().clone().requires_grad_() for tensor in self.problem.objective.selected.values()]

    def gradient(self) -> Tensor:
        point = self.point()
        with torch.enable_grad():
            parts = torch.autograd.grad(self.loss(point), point, allow_unused=True, materialize_grads=True)
        return torch.cat([part.reshape(-1) for part in parts])

    def products(self) -> Callable[[Tensor], Tensor]:
        """Return v ↦ H v, which keeps the graph of the gradient."""
        point = self.point()
        with torch.enable_grad():
            parts = torch.autograd.grad(
                self.loss(point), point, create_graph=True, allow_unused=True, materialize_grads=True
            )
            gradient = torch.cat([part.reshape(-1) for part in parts])

        def product(v: Tensor) -> Tensor:
            if not gradient.requires_grad:
                return torch.zeros_like(v)
            found = torch.autograd.grad(
                gradient, point, v, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            return torch.cat([part.reshape(-1) for part in found]).detach()

        return product


def plain(classifier: Classifier, batch: Batch, options: Options) -> Plain | str:
    """Write the loss with torch's functions; return a reason if that is impossible.

    Raises:
        ModelError, BatchError, OptionsError: as ``analyze``.
    """
    changes = {"device": "cpu", "devices": None, "dtype": "float64", "time_limit": None, "memory_limit": None}
    options = options.model_copy(update={**changes, "stop": "gap"})
    problem = pose(classifier, batch, options, Monitor(options, None, 0.0))
    if problem.product_operations > OPERATIONS or problem.objective.fits < problem.samples:
        return "the batch is too large to repeat its derivatives independently"
    found = _loss(problem, batch, options)
    return found if isinstance(found, str) else Plain(problem, *found)


def _loss(problem: Problem, batch: Batch, options: Options) -> tuple[Callable[[Tensor], Tensor], Tensor] | str:
    kind, y = problem.objective.loss.kind, batch.y
    given = np.ones(len(y)) if batch.weights is None else np.asarray(batch.weights, dtype=np.float64)
    weights = torch.from_numpy(given / given.sum())
    if problem.model.classes is not None or y.dtype.kind not in "iuf":
        return "labels are names of classes"
    if options.ignore_index is not None and (y == options.ignore_index).any():
        return "some labels are ignored"
    numbers = torch.from_numpy(np.ascontiguousarray(y))
    pos = None if options.pos_weight is None else torch.tensor(options.pos_weight, dtype=torch.float64)
    if kind == "squared_error":
        values = numbers.double().reshape(len(y), -1)
        return lambda z: F.mse_loss(z.reshape(len(z), -1), values, reduction="none").mean(1), weights
    if kind in ("binary_cross_entropy", "multilabel"):
        if options.label_smoothing or options.class_weights is not None or (kind[0] == "b" and y.ndim > 1):
            return "torch has no such binary loss"
        shares = numbers.double().reshape(len(y), -1)
        return lambda z: F.binary_cross_entropy_with_logits(z, shares, reduction="none", pos_weight=pos).mean(
            1
        ), weights
    if kind != "cross_entropy":
        return f"the loss {kind} is not written independently"
    of_classes, soft = options.class_weights, y.ndim == 2
    if soft:
        if of_classes is not None:
            return "torch divides by another weight for labels that are probabilities"
        numbers = numbers.double() / numbers.double().sum(1, keepdim=True)
    else:
        numbers = numbers.long()
    v = None if of_classes is None else torch.tensor(of_classes, dtype=torch.float64)
    if v is not None:
        weights = weights / (weights * v[numbers]).sum()
    smoothing = options.label_smoothing
    return lambda z: F.cross_entropy(z, numbers, v, reduction="none", label_smoothing=smoothing), weights


def check_independently(report: Report, classifier: Classifier, batch: Batch, options: Options, ledger: Ledger) -> None:
    """Compare loss, gradient, the first steps of the recurrence, and of small models moments and eigenvalues.

    Raises:
        ModelError, BatchError, OptionsError: as ``analyze``.
    """
    found = plain(classifier, batch, options)
    if isinstance(found, str):
        ledger.skip("loss.independent", found)
        return
    objective = found.problem.objective
    with torch.no_grad():
        z = objective.function({**objective.fixed, **objective.selected}, objective.chunk_inputs(slice(None)))
        value = float((found.weights * found.sample_losses(z)).sum())
    half = HALF if report.engine.dtype == "float64" else math.sqrt(2.0**-24)
    ledger.near("loss.value", report.loss.value, value, half * max(abs(value), half), HOW)
    if report.loss.kind != "squared_error" and _curvature(report, z) < LEAST_CURVATURE:
        ledger.skip("loss.independent", "samples are so certain that torch's own loss has no digits left to compare")
        return
    product = found.products()
    size = _check_recurrence(report, objective.parameters, product, half, ledger)
    norm = float(torch.linalg.vector_norm(found.gradient()))
    tolerance = half * max(norm, size, report.loss.gradient_norm)
    ledger.near("loss.gradient_norm", report.loss.gradient_norm, norm, tolerance, HOW)
    P = objective.parameters
    if P <= PARAMETERS and P * found.problem.product_operations <= FORMING:
        _check_matrix(report, torch.stack([product(row) for row in torch.eye(P, dtype=torch.float64)]), half, ledger)


def _curvature(report: Report, z: Tensor) -> float:
    """Return the mean of p (1 − p) over samples, of the most probable class."""
    p = z.softmax(1).amax(1) if report.loss.kind == "cross_entropy" else z.sigmoid()
    return float((p * (1 - p)).mean())


def _check_recurrence(
    report: Report, P: int, product: Callable[[Tensor], Tensor], half: float, ledger: Ledger
) -> float:
    """Take a few Lanczos steps with full reorthogonalisation from the start vector of the seed; return ‖T‖."""
    enclosure = report.enclosure
    q = on_sphere(P, report.engine.seed, 0, torch.device("cpu"))
    basis, alpha, beta = [q], [], []
    count = STEPS if enclosure is None or enclosure.alpha is None else min(STEPS, len(enclosure.alpha))
    for _ in range(min(count, P)):
        w = product(basis[-1])
        alpha.append(float(w @ basis[-1]))
        Q = torch.stack(basis)
        for _ in range(2):
            w = w - Q.T @ (Q @ w)
        beta.append(float(torch.linalg.vector_norm(w)))
        if beta[-1] <= 1e-12 * max(map(abs, alpha)):
            break
        basis.append(w / beta[-1])
    size = max(*map(abs, alpha), *beta)
    if enclosure is None or not enclosure.alpha or not enclosure.beta:
        return size
    steps = min(settled(alpha, beta, half), len(enclosure.alpha))
    tolerance, how = 100 * half * size, f"the first {steps} steps by {HOW}"
    for name, ours, theirs in (("alpha", enclosure.alpha, alpha), ("beta", enclosure.beta, beta)):
        ledger.each(f"enclosure.{name}.independent", ours[:steps], theirs[:steps], tolerance, how)
    return size


def _check_matrix(report: Report, H: Tensor, half: float, ledger: Ledger) -> None:
    """Compare trace, norm and eigenvalues of the whole Hessian."""
    H = (H + H.T) / 2
    t, norm = float(H.trace()), float(torch.linalg.vector_norm(H))
    values = torch.linalg.eigvalsh(H).flip(0).tolist()
    E = 0.0 if report.evidence is None else 2 * report.evidence.rounding.operator
    slack, moments = half * norm + E, report.moments
    if moments is not None and moments.exact:
        ledger.near("moments.trace.independent", moments.trace, t, math.sqrt(len(H)) * slack, HOW)
        tolerance = 2 * slack * norm + slack * slack
        ledger.near("moments.frobenius_squared.independent", moments.frobenius_squared, norm * norm, tolerance, HOW)
    elif moments is not None:
        holds = moments.frobenius_squared >= (norm - slack) ** 2
        ledger.judge("moments.frobenius_squared.independent", holds, f"above that of {HOW}", norm * norm)
    for name, value in (("lambda_max", values[0]), ("lambda_min", values[-1])):
        if report.enclosure is not None:
            end = getattr(report.enclosure, name)
            inside = end.lower - slack <= value <= end.upper + slack
            ledger.judge(f"enclosure.{name}.independent", inside, f"contains the eigenvalue by {HOW}", value)
        for index, bound in enumerate(report.named_bounds):
            interval = getattr(bound, name)
            inside = interval.lower - slack <= value <= interval.upper + slack
            ledger.judge(f"bounds_list.{index}.{name}.independent", inside, f"contains the eigenvalue by {HOW}", value)
    spectrum = report.spectrum
    if spectrum is not None and spectrum.eigenvalues:
        ours = spectrum.eigenvalues
        ledger.each("spectrum.eigenvalues.independent", ours, values[: len(ours)], slack, HOW)
