"""analyze(): classifier + batch + options → Report. Read from top to bottom it is what the product does."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from wsb_engine import report as r
from wsb_engine.analysis import krylov, moments
from wsb_engine.analysis.checks import Evidence, checks, failure
from wsb_engine.analysis.inputs import device as device_of
from wsb_engine.analysis.members import Devices
from wsb_engine.analysis.monitor import Monitor, TimeLimitError
from wsb_engine.analysis.problem import Problem, pose
from wsb_engine.analysis.rounding import Measuring
from wsb_engine.batch import Batch
from wsb_engine.bounds.certificates import Premises
from wsb_engine.bounds.rounding import Rounding
from wsb_engine.curvature.closed_form.activations import value
from wsb_engine.curvature.closed_form.mlp import network
from wsb_engine.curvature.closed_form.sums import ClosedForm
from wsb_engine.curvature.losses import Targets
from wsb_engine.curvature.products.autodiff import HessianProduct
from wsb_engine.curvature.threads import ONE_THREAD_OPERATIONS, threads_of
from wsb_engine.errors import ModelError, ResourceError, finite, overflow
from wsb_engine.model import Classifier, Tensors
from wsb_engine.options import Options
from wsb_engine.progress import ProgressCallback
from wsb_engine.spectrum.dense import dense_spectrum, form_hessian
from wsb_engine.spectrum.density import DensityEstimate
from wsb_engine.units import in_true_units
from wsb_engine.version import __version__

PARITY_SAMPLES = 4096
"""Samples whose logits are compared with an independent runtime."""
ONE_THREAD_SUMS = 5e8
"""Operations of the closed form up to which one thread of a CPU is as fast as two; its operators are large."""
FLOAT32_DRIFT = 1e-3
"""Relative error of a float32 product against a float64 one beyond which the report says so."""
TOP_SHARES = 10
"""Samples listed by their share of ‖H‖_F²."""


def analyze(
    classifier: Classifier,
    batch: Batch,
    options: Options | None = None,
    *,
    progress: ProgressCallback | None = None,
    devices: Sequence[str] = (),
) -> r.Report:
    """Bounds and, on request, the spectrum of the Hessian of the batch's cross-entropy.

    Args:
        classifier: From ``load_model`` or ``from_module``.
        batch: N labelled samples.
        options: See ``Options``.
        progress: Called every now and then; raising in it stops the analysis and reaches the caller.
        devices: Several that share the work, named as in ``Options.device`` and in its place; the first one leads.

    Raises:
        ModelError, BatchError, OptionsError, ResourceError: with a code and advice.
    """
    options = options or Options()
    chosen = [device_of(Options(device=name)) for name in devices]
    if chosen:
        options = options.model_copy(update={"device": str(chosen[0])})
    monitor = Monitor(options, progress, classifier.load_seconds + batch.load_seconds)
    with monitor.phase("setup"):
        problem = pose(classifier, batch, options, monitor)
    if len(chosen) < 2 or problem.objective.coupled:
        return report_on(problem, classifier, batch, options, monitor)
    with Devices(problem, chosen) as team:
        monitor.warn("split", f"products and pairs of samples were split over {', '.join(map(str, chosen))}")
        return report_on(replace(problem, team=team), classifier, batch, options, monitor)


@contextmanager
def _finite_numbers() -> Iterator[None]:
    """Gives a number that is not finite, which no report can hold, an error with a code and advice.

    Raises:
        ResourceError: ``overflow``.
    """
    try:
        yield
    except OverflowError as error:
        raise overflow("a number") from error
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] != "finite_number":
            raise
        place = ".".join(str(part) for part in (error.title, *first["loc"]))
        raise overflow(f"{place} of the report") from error


@_finite_numbers()
def report_on(problem: Problem, classifier: Classifier, batch: Batch, options: Options, monitor: Monitor) -> r.Report:
    """All of an analysis but its setup.

    Raises:
        ModelError, ResourceError: with a code and advice.
    """
    device = problem.objective.device
    small = problem.product_operations <= ONE_THREAD_OPERATIONS
    with monitor.phase("loss"), threads_of(device, one=small):
        loss_part = _loss(problem)
    with monitor.phase("parity"):
        parity = _parity(problem, classifier, monitor)
    choice = moments.choose(problem, options, monitor)
    probing = choice is not None and choice.method == "probes"
    layout = None if choice is None else choice.layout
    summed_by_one = layout is not None and layout.cost <= ONE_THREAD_SUMS
    monitor.one_thread = device.type == "cpu" and small and summed_by_one and options.spectrum == "none"
    product = problem.hessian_product(columns=1)
    shared = None
    if probing or krylov.wanted(options):
        shared = krylov.krylov(problem, product, options, monitor)
    share = moments.shares(options, single=product.dtype == torch.float32, probing=probing)
    measuring = Measuring(problem, options.seed, share, monitor.tell)
    with monitor.phase("rounding"), threads_of(device, one=small):
        rounding = measuring.rounding(product, layout)
    hessian, found = None, None
    with (
        monitor.phase("moments"),
        _partial(monitor, "moments", options.enclosure),
        _without_overflow(monitor, options),
        monitor.limited(),
        threads_of(device, one=summed_by_one),
    ):
        if choice is not None:
            if options.spectrum == "dense" and problem.structure is None and not probing:
                hessian = _form(problem, monitor)
            found = moments.compute(problem, options, choice, hessian, shared, rounding, monitor)
            found = moments.with_gauss_newton(found, problem)
    premises = Premises(
        rounding=rounding,
        moments=None if found is None else found.known,
        failure_probability=share,
        relative_gap=options.relative_gap,
        both=options.ends == "both",
    )
    enclosure, evidence = None, Evidence()
    with monitor.phase("enclosure"), threads_of(device, one=small):
        if options.enclosure and shared is not None:
            enclosure, ritz = krylov.enclosure(problem, shared, premises, measuring, options, monitor)
            evidence = replace(_evidence(problem, product, options.seed, monitor), ritz=ritz)
    spectrum = None
    with monitor.phase("spectrum"), _partial(monitor, "a spectrum", enclosure is not None), monitor.limited():
        spectrum, evidence = _spectrum(problem, options, shared, premises, hessian, evidence, monitor)
    part, bounds, closed = (None, None, None) if found is None else (found.part, found.bounds, found.closed)
    found_checks = checks(problem, part, bounds, enclosure, spectrum, parity, rounding, evidence)
    for check in found_checks:
        if not check.passed:
            monitor.warn("check_failed", failure(check))
    report = r.Report(
        engine=_engine(problem, options),
        model=_model(classifier, problem, parity),
        batch=r.BatchSummary(
            sha256=batch.sha256, samples=len(batch), classes=problem.objective.loss.classes(problem.logits.shape[1])
        ),
        loss=loss_part,
        moments=part,
        bounds=bounds,
        enclosure=enclosure,
        spectrum=spectrum,
        layers=_layers(problem, closed, rounding),
        blocks=None if closed is None else closed.block_squares.clamp(min=0).sqrt().tolist(),
        orthogonality=_orthogonality(closed),
        checks=found_checks,
        warnings=monitor.warnings,
        timings=monitor.timings(),
    )
    return in_true_units(report, problem.objective.scale)


@contextmanager
def _partial(monitor: Monitor, what: str, something: bool) -> Iterator[None]:
    """Leaves a part out once the time limit has passed, as long as the report will hold something without it."""
    try:
        yield
    except TimeLimitError as error:
        if not something:
            raise
        monitor.warn("time_limit", f"{error.message}: the report is partial, without {what}")


@contextmanager
def _without_overflow(monitor: Monitor, options: Options) -> Iterator[None]:
    """Leaves moments out if their squares leave the range of numbers and nobody asked for them."""
    try:
        yield
    except ResourceError as error:
        if error.code != "overflow" or options.moments != "auto" or not options.enclosure:
            raise
        monitor.warn("moments_unavailable", f"{error.message}: no moments")


def _loss(problem: Problem) -> r.Loss:
    loss, targets, logits = problem.objective.loss, problem.objective.targets, problem.logits
    y, w = targets.y.cpu(), targets.weights.cpu()
    accuracy = loss.accuracy(logits, Targets(y, w))
    if accuracy is None:
        raise ValueError("a report states an accuracy")
    return r.Loss(
        kind=loss.kind,
        value=finite(float((w * loss.values(logits, y)).sum()), "the loss"),
        gradient_norm=finite(_norm(problem.objective.gradient()), "the gradient's norm"),
        accuracy=accuracy,
    )


def _parity(problem: Problem, classifier: Classifier, monitor: Monitor) -> r.Parity | None:
    model = problem.model
    if model.reference is None or model.reference_name is None:
        if classifier.format != "module":
            monitor.warn("parity_none", "there is no other runtime to compare these logits with")
        return None
    rows = slice(0, problem.samples if problem.objective.coupled else PARITY_SAMPLES)
    arrays = {name: tensor[rows].numpy() for name, tensor in problem.objective.inputs.items()}
    try:
        expected = model.reference(arrays)
    except ModelError as error:
        monitor.warn("parity_unavailable", f"{model.reference_name} can't monitor this model: {error.message}")
        return None
    theirs, ours = np.asarray(expected, dtype=np.float64), problem.logits[rows].numpy()
    comparable = np.isfinite(theirs)
    if not comparable.all():
        # A probability that underflows in the file's precision has no logarithm there.
        monitor.warn(
            "parity_partial", f"{comparable.size - comparable.sum()} of the logits overflow in {model.reference_name}"
        )
    if not comparable.any():
        return None
    difference = np.abs(theirs - ours)[comparable]
    return r.Parity(reference=model.reference_name, max_abs_error=float(difference.max()))


def _evidence(problem: Problem, product: HessianProduct, seed: int, monitor: Monitor) -> Evidence:
    """How well the products behave, on random vectors; none once time is up."""
    if monitor.expired:
        return Evidence()
    if problem.objective.dtype == torch.float32:
        drift = krylov.float32_drift(problem, product, seed)
        if drift > FLOAT32_DRIFT:
            monitor.warn(
                "float32_drift",
                f"products in float32 are off by {drift:.2g} of their size: certified numbers allow for that, "
                "estimates do not; use dtype float64",
            )
    return Evidence(symmetry=krylov.symmetry_error(product, seed))


def _form(problem: Problem, monitor: Monitor) -> Tensor:
    return form_hessian(problem.hessian_product(), memory=problem.memory, progress=monitor.report)


def _spectrum(
    problem: Problem,
    options: Options,
    shared: krylov.Krylov | None,
    premises: Premises,
    hessian: Tensor | None,
    evidence: Evidence,
    monitor: Monitor,
) -> tuple[r.SpectrumResult | None, Evidence]:
    drawn = krylov.spectral_density(shared, options, monitor) if options.density and shared is not None else None
    density = None if drawn is None else _density(drawn)
    if options.spectrum == "dense":
        H = _form(problem, monitor) if hessian is None else hessian
        disagreement, reach = _disagreement(problem, H, options.seed)
        dense = dense_spectrum(H)
        result = r.SpectrumResult(
            method="dense",
            eigenvalues=dense.eigenvalues.tolist(),
            residuals=None,
            upper_bounds=None,
            density=density,
        )
        return result, replace(evidence, asymmetry=dense.asymmetry, disagreement=disagreement, reach=reach)
    if options.spectrum == "top" and shared is not None:
        found = krylov.top(shared, premises, options, monitor)
        result = r.SpectrumResult(
            method="lanczos",
            eigenvalues=found.eigenvalues.tolist(),
            residuals=found.residuals.tolist(),
            upper_bounds=found.upper_bounds,
            density=density,
        )
        return result, evidence
    if density is None:
        return None, evidence
    return (
        r.SpectrumResult(method="lanczos", eigenvalues=[], residuals=[], upper_bounds=None, density=density),
        evidence,
    )


def _density(drawn: DensityEstimate) -> r.Density:
    return r.Density(
        grid=drawn.grid.tolist(),
        values=drawn.values.tolist(),
        sigma=drawn.sigma,
        mean=drawn.mean,
        mean_error=drawn.mean_error,
        second_moment=drawn.second_moment,
        second_moment_error=drawn.second_moment_error,
    )


def _disagreement(problem: Problem, hessian: Tensor, seed: int) -> tuple[float, float]:
    """‖Hv − H′v‖ / ‖H′v‖ and ‖v‖ / ‖H′v‖ for a random v, where H′v is by automatic differentiation."""
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(len(hessian), generator=generator, dtype=torch.float64).to(hessian.device)
    reference = _reference(problem, v)
    scale, difference = _norm(reference), _norm(hessian @ v - reference)
    if scale == 0:
        return math.inf if difference > 0 else 0.0, 0.0
    return difference / scale, _norm(v) / scale


def _norm(v: Tensor) -> float:
    """‖v‖, divided by the largest entry first, so that no square leaves the range of numbers."""
    largest = float(v.abs().max())
    return largest * float(torch.linalg.vector_norm(v / largest)) if largest else 0.0


def _reference(problem: Problem, v: Tensor) -> Tensor:
    """H·v by automatic differentiation: of an MLP's layers, whose logits were compared, else of the file's graph."""
    objective, structure = problem.objective, problem.structure
    if structure is None:
        return problem.from_scratch(objective).vector(v)

    def logits(parameters: Tensors, inputs: Tensors) -> Tensor:
        z = structure.mlp.features(inputs)
        for index, layer in enumerate(network(structure.mlp, parameters, frozenset(), objective.loss).layers):
            z = torch.nn.functional.linear(z, layer.W, layer.b)
            if index < len(structure.mlp.activations):
                z = value(structure.mlp.activations[index], z)
        return z

    # Backwards twice, for which nothing has to be imported that takes a second.
    return replace(objective, function=logits).twice_backward(v.to(objective.dtype))


def _engine(problem: Problem, options: Options) -> r.Engine:
    return r.Engine(
        version=__version__,
        torch=torch.__version__,
        device=str(problem.objective.device),
        dtype="float64" if problem.objective.dtype == torch.float64 else "float32",
        seed=options.seed,
    )


def _model(classifier: Classifier, problem: Problem, parity: r.Parity | None) -> r.Model:
    selected = problem.objective.selected
    return r.Model(
        format=classifier.format,
        sha256=classifier.sha256,
        architecture="mlp" if problem.structure is not None else "general",
        parameters=r.Parameters(
            count=problem.objective.parameters,
            tensors=[
                r.ParameterTensor(name=name, shape=list(tensor.shape), count=tensor.numel())
                for name, tensor in selected.items()
            ],
            tied=[name for name in problem.model.tied if name in selected],
        ),
        activations=list(problem.model.activations),
        smooth=not problem.nonsmooth,
        nonsmooth_operators=list(problem.nonsmooth),
        head=problem.model.head,
        parity=parity,
    )


def _layers(problem: Problem, closed: ClosedForm | None, rounding: Rounding) -> list[r.LayerCurvature] | None:
    if closed is None or problem.structure is None:
        return None
    parts = []
    for index, layer in enumerate(problem.structure.net.layers):
        t, q = float(closed.layer_traces[index]), float(closed.block_squares[index, index])
        n = layer.parameters
        upper = rounding.wolkowicz_styan(t, q, n).lambda_max_upper if n else 0.0
        parts.append(
            r.LayerCurvature(
                name=layer.name,
                parameters=layer.parameters,
                trace=t,
                frobenius_squared=q,
                wolkowicz_styan_upper=upper,
            )
        )
    return parts


def _orthogonality(closed: ClosedForm | None) -> r.Orthogonality | None:
    if closed is None:
        return None
    q = closed.frobenius_squared
    shares = closed.sample_shares / q if q else torch.zeros_like(closed.sample_shares)
    order = torch.argsort(shares, descending=True, stable=True)[:TOP_SHARES]
    return r.Orthogonality(
        coherence=closed.coherence,
        cross_sample_share=1 - closed.self_share / q if q else 0.0,
        sample_shares=[r.SampleShare(row=int(row), share=float(shares[row])) for row in order],
    )
