"""analyze(): classifier + batch + options → Report. Read from top to bottom it is what the product does."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor

from wsb_engine import devices
from wsb_engine import report as r
from wsb_engine.analysis import agreement, bounds, enclosing, krylov, moments, parts
from wsb_engine.analysis.agreement import MeasuredErrors
from wsb_engine.analysis.checks import checks, failure
from wsb_engine.analysis.enclosure_part import continued
from wsb_engine.analysis.estimate import estimate_of, placed
from wsb_engine.analysis.inputs import device as device_of
from wsb_engine.analysis.inputs import several
from wsb_engine.analysis.members import split
from wsb_engine.analysis.monitor import Monitor, deciding
from wsb_engine.analysis.problem import Problem, pose
from wsb_engine.analysis.questions.local import Known, local, require
from wsb_engine.analysis.questions.optimizer import Steps, stable_steps, steps_of
from wsb_engine.analysis.questions.population import population
from wsb_engine.analysis.questions.scaling import scaled
from wsb_engine.analysis.rounding import Measuring
from wsb_engine.analysis.spectrum import form, spectrum
from wsb_engine.arithmetic import exact
from wsb_engine.batch import Batch
from wsb_engine.bounds.certificates import Premises
from wsb_engine.bounds.rounding import Rounding
from wsb_engine.citations import citations
from wsb_engine.curvature.products.autodiff import HessianProduct
from wsb_engine.curvature.threads import ONE_THREAD_OPERATIONS, threads_of
from wsb_engine.errors import ModelError, ResourceError, overflow
from wsb_engine.model import Classifier
from wsb_engine.optimizer_state import StateSource
from wsb_engine.options import Options
from wsb_engine.progress import Decided, ProgressCallback
from wsb_engine.units import in_true_units


def analyze(
    classifier: Classifier,
    batch: Batch,
    options: Options | None = None,
    *,
    progress: ProgressCallback | None = None,
    needs: Collection[str] = (),
    decided: Decided | None = None,
    optimizer_state: StateSource | None = None,
) -> r.Report:
    """Bound the Hessian of the batch's cross-entropy and, on request, compute its spectrum.

    Args:
        classifier: From ``load_model`` or ``from_module``.
        batch: N labelled samples.
        options: See ``Options``.
        progress: Called regularly; an exception raised in it stops the analysis and reaches the caller.
        needs: Paths of the report, such as ``moments.trace``, that ``moments="auto"`` must not leave out to save time.
        decided: Called with what is certified so far if ``Options.stop`` is decided; returns True to end the enclosure.
            Without a basis, inner ends are provisional there: decide, and judge by the report.
        optimizer_state: Second moments for ``Options.optimizer``: the path or the content of a .safetensors file, or
            arrays by name, such as ``0.weight.exp_avg_sq`` and ``step``.

    Raises:
        ModelError, BatchError, OptionsError, ResourceError: with a code and advice.

    Examples:
        >>> import wsb
        >>> classifier, batch = wsb.load_model("model.onnx"), wsb.load_batch("batch.npz")
        >>> report = wsb.analyze(classifier, batch)
        >>> print(f"{report.bounds.wolkowicz_styan.lambda_max.upper:.4f}")
        1.9882
        >>> print(f"{report.enclosure.lambda_max.lower:.4f} to {report.enclosure.lambda_max.upper:.4f}")
        0.8378 to 0.8378
        >>> first_layer = wsb.analyze(classifier, batch, wsb.Options(parameters=("w0", "b0")))
        >>> first_layer.enclosure.lambda_max.upper < report.enclosure.lambda_max.upper
        True
    """
    options, chosen = options or Options(), several(options or Options())
    seconds = classifier.load_seconds + batch.load_seconds
    monitor = Monitor(options, progress, seconds, deciding(options, decided))
    with devices.faults_as_errors(), ExitStack() as stack:
        with monitor.phase("setup"), monitor.limited():
            options = placed(classifier, batch, options, needs)
            gpus = any(map(devices.is_gpu, chosen or [device_of(options)]))
            monitor.not_deterministic = stack.enter_context(exact(gpus=gpus))
            problem = pose(classifier, batch, options, monitor)
            steps = steps_of(problem, options, optimizer_state)
        if progress is not None:
            monitor.estimate = estimate_of(problem, options, needs)
        problem = split(problem, chosen, stack, monitor)
        return report_on(problem, classifier, batch, options, monitor, needs, steps)


@contextmanager
def _reportable() -> Iterator[None]:
    """Turn what no report can hold, as a number that is not finite, into an error with a code and advice.

    Raises:
        ModelError: ``model_too_complex``.
        ResourceError: ``overflow``.
    """
    try:
        yield
    except OverflowError as error:
        raise overflow("a number") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in (error.title, *first["loc"]))
        if first["type"] == "finite_number":
            raise overflow(f"{place} of the report") from error
        if first["type"] in ("too_long", "string_too_long"):
            raise ModelError(
                f"{place} of the report would exceed its limit",
                code="model_too_complex",
                advice="Export the model with shorter names, or fewer tensors.",
                limit=first["ctx"]["max_length"],
            ) from error
        raise


@_reportable()
def report_on(
    problem: Problem,
    classifier: Classifier,
    batch: Batch,
    options: Options,
    monitor: Monitor,
    needs: Collection[str] = (),
    steps: Steps | None = None,
) -> r.Report:
    """Run every stage of an analysis but its setup.

    Raises:
        ModelError, ResourceError: with a code and advice.
    """
    require(problem, options)
    device, small = problem.objective.device, problem.product_operations <= ONE_THREAD_OPERATIONS
    with monitor.phase("loss"), monitor.limited(), threads_of(device, one=small):
        loss = parts.loss(problem)
    with monitor.phase("parity"):
        parity = parts.parity(problem, classifier, monitor)
    choice = moments.choose(problem, options, needs, monitor)
    monitor.one_thread = device.type == "cpu" and small and choice.is_short and options.spectrum == "none"
    product = problem.hessian_product(columns=1)
    shared = krylov.krylov(problem, product, options, monitor) if choice.probing or krylov.wanted(options) else None
    share = moments.shares(options, single=product.dtype == torch.float32, probing=choice.probing)
    measuring = Measuring(problem, options.seed, share, monitor)
    with monitor.phase("rounding"), monitor.limited(), threads_of(device, one=small):
        rounding = measuring.rounding(product, choice.layout)
    certified = _certified(problem, options, choice, shared, measuring, rounding, monitor)
    found, enclosure = certified.moments, certified.enclosure
    distribution, errors = _distribution(problem, options, shared, certified, monitor)
    named = [] if found is None else bounds.evaluate(found.quantities, rounding)
    eigenvalues = None
    with monitor.phase("spectrum"), monitor.optional("a spectrum", enclosure is not None), monitor.limited():
        premises, hessian = certified.premises, certified.hessian
        eigenvalues, errors = spectrum(problem, options, shared, premises, hessian, errors, monitor)
    part, closed = (None, None) if found is None else (found.part, found.closed)
    with threads_of(device, one=small):
        where = local(problem, options, Known(product, shared, certified.premises, measuring, closed), monitor)
    results = checks(problem, parity, part, named, enclosure, eigenvalues, rounding, errors)
    for check in results:
        if not check.passed:
            monitor.warn("check_failed", failure(check))
    # What follows has runs of other matrices, for which the memory of this one is needed.
    shared = None
    extremes = None if enclosure is None else in_true_units(enclosure.lambda_max, problem.objective.scale)
    of_scaled = _of_scaled(problem, product, steps, extremes, found is not None, options, monitor)
    if monitor.not_deterministic:
        named_operators = ", ".join(sorted(monitor.not_deterministic))
        monitor.warn(
            "not_deterministic",
            f"{named_operators} may round in another way each time on this device: another run may end in other digits",
        )
    report = r.Report(
        engine=parts.engine(problem, options),
        model=parts.model(classifier, problem, parity, monitor),
        batch=parts.batch(batch, problem),
        loss=loss,
        moments=part,
        bounds=bounds.from_moments(named),
        bounds_list=named,
        enclosure=enclosure,
        spectrum=eigenvalues,
        blocks=parts.blocks(closed),
        orthogonality=parts.orthogonality(closed),
        checks=results,
        warnings=monitor.warnings,
        timings=monitor.timings(),
        products=monitor.products,
        evidence=parts.evidence(problem, options, needs, rounding),
        population=distribution,
        **where,
    )
    report = in_true_units(report, problem.objective.scale).model_copy(update=of_scaled)
    return report.model_copy(update={"citations": citations(report)})


def _of_scaled(
    problem: Problem,
    product: HessianProduct,
    steps: Steps | None,
    lambda_max: r.CertifiedInterval | None,
    otherwise: bool,
    options: Options,
    monitor: Monitor,
) -> dict[str, BaseModel]:
    """Answer what is asked about D H D, as parts of the report in true units."""
    answers: dict[str, BaseModel | None] = {}
    otherwise = otherwise or lambda_max is not None
    if options.scaling != "none":
        with monitor.phase("scaled"), monitor.optional("the scaled sharpness", otherwise):
            answers["scaled"] = scaled(problem, product, options, monitor)
    if steps is not None:
        with monitor.phase("optimizer"), monitor.optional("the largest stable learning rate", otherwise):
            answers["optimizer"] = stable_steps(problem, product, steps, lambda_max, options, monitor)
    return {name: type(part).model_validate(part.model_dump()) for name, part in answers.items() if part is not None}


@dataclass(frozen=True)
class _Certified:
    """What moments and the Krylov run certify."""

    premises: Premises
    """What the enclosure rests on."""
    moments: moments.MomentsResult | None
    hessian: Tensor | None
    """The dense Hessian, if the moments come from it."""
    enclosure: r.Enclosure | None
    errors: MeasuredErrors


def _certified(
    problem: Problem,
    options: Options,
    choice: moments.Choice,
    shared: krylov.Krylov | None,
    measuring: Measuring,
    rounding: Rounding,
    monitor: Monitor,
) -> _Certified:
    """Compute the moments and the enclosure in the order of the choice."""
    device, small = problem.objective.device, problem.product_operations <= ONE_THREAD_OPERATIONS
    found, hessian, enclosure, errors = None, None, None, MeasuredErrors()
    if choice.when == "first":
        # However slow this machine is, λ_max comes first.
        reserve = moments.LEFT_SHARE * monitor.seconds_left if options.enclosure else 0.0
        found, hessian = _moments(problem, options, choice, shared, rounding, options.enclosure, monitor, reserve)
    premises = Premises(
        rounding=rounding,
        moments=None if found is None else found.known,
        failure_probability=measuring.failure_probability,
        relative_gap=options.relative_gap,
        both=options.ends == "both",
    )
    if options.enclosure and shared is not None:
        with monitor.phase("enclosure"), threads_of(device, one=small):
            enclosure, ritz = enclosing.enclosure(problem, shared, premises, measuring, options, monitor)
            with monitor.optional("the symmetry of products", otherwise=True), monitor.limited():
                errors = agreement.of_products(problem, shared.product, rounding, options.seed, monitor)
            errors = replace(errors, ritz=ritz)
            _judge_precision(problem, options, enclosure, monitor)
    if choice.when != "first":
        choice = moments.choose_after(choice, problem, options, shared, enclosure, monitor)
        found, hessian = _moments(problem, options, choice, shared, rounding, enclosure is not None, monitor)
        deflates = choice.when == "last" and options.enclosure
        # Without a basis there is nothing to deflate.
        if found is not None and deflates and shared is not None and shared.basis is not None:
            premises = replace(premises, moments=found.known)
            with monitor.phase("deflation"), threads_of(device, one=small):
                monitor.forget(*enclosing.WARNINGS)
                deflated, ritz = enclosing.enclosure(problem, shared, premises, measuring, options, monitor)
                enclosure, errors = continued(enclosure, deflated), replace(errors, ritz=ritz)
    return _Certified(premises, found, hessian, enclosure, errors)


def _distribution(
    problem: Problem, options: Options, shared: krylov.Krylov | None, certified: _Certified, monitor: Monitor
) -> tuple[r.Population | None, MeasuredErrors]:
    """Bound λ_max of the distribution, if the options ask for it and time allows; add what that measured."""
    found, errors, confidence = None, certified.errors, options.population
    if confidence is None:
        return found, errors
    small = problem.product_operations <= ONE_THREAD_OPERATIONS
    with (
        monitor.phase("population"),
        threads_of(problem.objective.device, one=small),
        monitor.optional("the distribution's λ_max", otherwise=True),
        monitor.limited(),
    ):
        found, errors = population(problem, confidence, options, shared, certified.enclosure, errors, monitor)
    return found, errors


def _judge_precision(problem: Problem, options: Options, enclosure: r.Enclosure | None, monitor: Monitor) -> None:
    """Say what float32 costs in width, if it was chosen to save time."""
    objective = problem.objective
    if options.dtype != "auto" or objective.dtype != torch.float32:
        return
    found = "rounding leaves no enclosure"
    if enclosure is not None:
        top, floor = enclosure.lambda_max, enclosure.floor
        size = max(abs(top.lower), abs(top.upper))
        share = enclosure.rounding_slack / size if size else 0.0
        reach = "" if floor is None else f", and no gap below {floor:.2g} can be reached"
        found = f"rounding moves the ends by {share:.2g} of λ_max{reach}"
    monitor.warn(
        "float32_chosen",
        f"products in float64 would take too long or too much memory, so they are computed in float32: {found}; set "
        "dtype float64 if that does not matter",
    )


def _moments(
    problem: Problem,
    options: Options,
    choice: moments.Choice,
    shared: krylov.Krylov | None,
    rounding: Rounding,
    otherwise: bool,
    monitor: Monitor,
    reserve: float = 0.0,
) -> tuple[moments.MomentsResult | None, Tensor | None]:
    """Compute the moments, and the dense Hessian if they come from it; keep what a limit leaves of them.

    Args:
        problem, options, choice, shared, rounding, monitor: See ``moments.compute``.
        otherwise: True if the report contains something without them.
        reserve: Seconds to leave for later stages.
    """
    found, hessian = None, None
    with (
        monitor.phase("moments"),
        threads_of(problem.objective.device, one=choice.is_short),
        monitor.optional("moments", otherwise),
        _without_overflow(monitor, options),
        monitor.limited(reserve),
    ):
        if choice.method == "basis" and options.spectrum == "dense" and problem.structure is None:
            hessian = form(problem, monitor)
        found = moments.compute(problem, options, choice, hessian, shared, rounding, monitor)
        found = None if found is None else moments.with_gauss_newton(found, problem)
    return found, hessian


@contextmanager
def _without_overflow(monitor: Monitor, options: Options) -> Iterator[None]:
    """Leave moments out if their squares leave the range of numbers and nobody asked for them."""
    try:
        yield
    except ResourceError as error:
        if error.code != "overflow" or options.moments != "auto" or not options.enclosure:
            raise
        monitor.warn("moments_unavailable", f"{error.message}: no moments")
