"""analyze(): classifier + batch + options → Report. Read from top to bottom it is what the product does."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

import wsb_engine
from wsb_engine import report as r
from wsb_engine.bounds.enclosure import End, ExactMoments, enclose
from wsb_engine.bounds.wolkowicz_styan import wolkowicz_styan
from wsb_engine.checks import checks
from wsb_engine.classifier import Classifier
from wsb_engine.curvature import loss
from wsb_engine.curvature.basis import basis_moments
from wsb_engine.curvature.closed_form import ClosedForm, closed_form
from wsb_engine.curvature.hessian_product import AutodiffProduct
from wsb_engine.curvature.plan import plan
from wsb_engine.errors import ModelError, OptionsError, ResourceError
from wsb_engine.formats.batch import Batch
from wsb_engine.options import Options
from wsb_engine.problem import Problem, Structure, pose
from wsb_engine.progress import ProgressCallback
from wsb_engine.run import Run
from wsb_engine.spectrum.dense import DenseSpectrum, dense_spectrum, form_hessian
from wsb_engine.spectrum.lanczos import ROWS, Lanczos

BASIS_PARAMETERS = 20_000
"""Up to this many parameters ``moments="auto"`` multiplies the whole basis where there is no closed form."""
PARITY_SAMPLES = 4096
"""Samples whose logits are compared with an independent runtime."""
TOP_SHARES = 10
"""Samples listed by their share of ‖H‖_F²."""


def analyze(
    classifier: Classifier, batch: Batch, options: Options | None = None, *, progress: ProgressCallback | None = None
) -> r.Report:
    """Bounds and, on request, the spectrum of the Hessian of the batch's cross-entropy.

    Args:
        classifier: From ``load_model`` or ``from_module``.
        batch: N labelled samples.
        options: See ``Options``.
        progress: Called every now and then; raising in it stops the analysis and reaches the caller.

    Raises:
        ModelError, BatchError, OptionsError, ResourceError: with a code and advice.
    """
    options = options or Options()
    run = Run(options, progress, classifier.load_seconds + batch.load_seconds)
    with run.phase("setup"):
        problem = pose(classifier, batch, options, run)
    with run.phase("loss"):
        loss_part = _loss(problem)
    with run.phase("parity"):
        parity = _parity(problem, run)
    spectrum, disagreement = None, None
    with run.phase("spectrum"):
        if options.spectrum == "dense":
            hessian = form_hessian(problem.hessian_product(), memory=problem.memory, progress=run.report)
            disagreement = _disagreement(problem, hessian, options.seed)
            spectrum = dense_spectrum(hessian)
    with run.phase("moments"):
        moments, closed = _moments(problem, options, spectrum, run)
    bounds = None if moments is None else _bounds(moments, problem.objective.parameters)
    with run.phase("enclosure"):
        enclosure = _enclosure(problem, options, moments, run) if options.enclosure else None
    return r.Report(
        engine=_engine(problem, options),
        model=_model(classifier, problem, parity),
        batch=r.BatchSummary(sha256=batch.sha256, samples=len(batch), classes=max(problem.logits.shape[1], 2)),
        loss=loss_part,
        moments=moments,
        bounds=bounds,
        enclosure=enclosure,
        spectrum=_spectrum(spectrum),
        layers=_layers(problem, closed),
        blocks=None if closed is None else closed.block_squares.clamp(min=0).sqrt().tolist(),
        orthogonality=_orthogonality(closed),
        checks=checks(problem, moments, bounds, enclosure, spectrum, parity, disagreement),
        warnings=run.warnings,
        timings=run.timings(),
    )


def _loss(problem: Problem) -> r.Loss:
    targets, logits = problem.objective.targets, problem.logits
    y, w = targets.y.cpu(), targets.weights.cpu()
    return r.Loss(
        kind=targets.kind,
        value=float((w * loss.sample_losses(logits, y)).sum()),
        gradient_norm=float(torch.linalg.vector_norm(problem.objective.gradient())),
        accuracy=loss.accuracy(logits, loss.Targets(y, w)),
    )


def _parity(problem: Problem, run: Run) -> r.Parity | None:
    model = problem.model
    if model.reference is None or model.reference_name is None:
        return None
    rows = slice(0, PARITY_SAMPLES)
    arrays = {name: tensor[rows].numpy() for name, tensor in problem.objective.inputs.items()}
    try:
        expected = model.reference(arrays)
    except ModelError as error:
        run.warn("parity_unavailable", f"{model.reference_name} can't run this model: {error.message}")
        return None
    difference = np.abs(np.asarray(expected, dtype=np.float64) - problem.logits[rows].numpy())
    return r.Parity(reference=model.reference_name, max_abs_error=float(difference.max()))


def _disagreement(problem: Problem, hessian: Tensor, seed: int) -> float:
    """‖Hv − H′v‖ / ‖H′v‖ for a random v, where H′v is by automatic differentiation of the file's own graph."""
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(len(hessian), 1, generator=generator, dtype=torch.float64).to(hessian.device)
    reference = AutodiffProduct(problem.objective)(v.to(problem.objective.dtype))
    scale = float(torch.linalg.vector_norm(reference))
    return float(torch.linalg.vector_norm(hessian @ v - reference)) / scale if scale else 0.0


def _moments(
    problem: Problem, options: Options, spectrum: DenseSpectrum | None, run: Run
) -> tuple[r.Moments | None, ClosedForm | None]:
    method = options.moments
    if method == "closed_form" and problem.structure is None:
        raise OptionsError(
            "the closed form needs a smooth multi-layer perceptron, which this model is not",
            code="closed_form_unavailable",
            advice="Leave moments at auto.",
            nonsmooth_operators=list(problem.nonsmooth),
        )
    if method == "none":
        return None, None
    if problem.structure is not None and method in ("auto", "closed_form"):
        closed = _closed_form(problem, problem.structure, run)
        return _moments_part("closed_form", closed.trace, closed.frobenius_squared), closed
    if spectrum is not None:
        return _moments_part("basis", spectrum.trace, spectrum.frobenius_squared), None
    if method == "auto" and problem.objective.parameters > BASIS_PARAMETERS:
        run.warn(
            "moments_unavailable",
            f"{problem.objective.parameters:,} parameters without a closed form are more than {BASIS_PARAMETERS:,}: "
            "no moments; ask for moments = basis if the time does not matter",
        )
        return None, None
    t, q = basis_moments(problem.hessian_product(), progress=run.report)
    return _moments_part("basis", t, q), None


def _moments_part(method: r.MomentsMethod, trace: float, frobenius_squared: float) -> r.Moments:
    if not (math.isfinite(trace) and math.isfinite(frobenius_squared)):
        raise ResourceError(
            "the Hessian's moments overflow",
            code="overflow",
            advice="Rescale the inputs or weights, or use dtype float64.",
        )
    return r.Moments(method=method, exact=True, trace=trace, frobenius_squared=frobenius_squared)


def _closed_form(problem: Problem, structure: Structure, run: Run) -> ClosedForm:
    weights, itemsize = problem.objective.targets.weights, problem.objective.dtype.itemsize
    layout = plan(structure.net, len(weights), memory=problem.memory, itemsize=itemsize)
    with torch.no_grad():
        return closed_form(structure.net, problem.tile, weights, layout, progress=run.report)


def _bounds(moments: r.Moments, parameters: int) -> r.Bounds:
    b = wolkowicz_styan(moments.trace, moments.frobenius_squared, parameters)
    return r.Bounds(
        wolkowicz_styan=r.ExtremeBounds(
            lambda_max=r.Interval(lower=b.lambda_max_lower, upper=b.lambda_max_upper),
            lambda_min=r.Interval(lower=b.lambda_min_lower, upper=b.lambda_min_upper),
        )
    )


def _enclosure(problem: Problem, options: Options, moments: r.Moments | None, run: Run) -> r.Enclosure:
    product = problem.hessian_product(columns=1)
    limit = min(options.max_products, product.parameters)
    # The basis is kept in float64, besides a few vectors for the product itself.
    fits = max(1, problem.memory // (8 * product.parameters) - ROWS)
    if fits < limit:
        run.warn("enclosure_memory", f"the memory limit holds {fits} products of the {limit} that were allowed")
    found = enclose(
        Lanczos(
            product.vector,
            product.parameters,
            product.device,
            options.seed,
            unit=torch.finfo(product.dtype).eps,
        ),
        moments=ExactMoments(moments.trace, moments.frobenius_squared)
        if moments is not None and moments.exact
        else None,
        failure_probability=options.failure_probability,
        relative_gap=options.relative_gap,
        max_products=min(limit, fits),
        progress=lambda now: run.report(now.products / limit, now.products),
    )
    if found.lambda_max.relative_gap > options.relative_gap:
        run.warn(
            "enclosure_open",
            f"after {found.products} products the gap of λ_max is {found.lambda_max.relative_gap:.3g} of its size, not "
            f"{options.relative_gap:g}: allow more with max_products",
        )
    return r.Enclosure(
        lambda_max=_certified(found.lambda_max),
        lambda_min=_certified(found.lambda_min),
        hessian_vector_products=found.products,
        rounding_slack=found.slack,
    )


def _certified(end: End) -> r.CertifiedInterval:
    return r.CertifiedInterval(
        lower=end.lower,
        upper=end.upper,
        relative_gap=end.relative_gap if math.isfinite(end.relative_gap) else None,
        kind=end.kind,
        failure_probability=None if end.kind == "deterministic" else end.failure_probability,
    )


def _engine(problem: Problem, options: Options) -> r.Engine:
    return r.Engine(
        version=wsb_engine.__version__,
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


def _spectrum(spectrum: DenseSpectrum | None) -> r.SpectrumResult | None:
    if spectrum is None:
        return None
    return r.SpectrumResult(method="dense", eigenvalues=spectrum.eigenvalues.tolist(), residuals=None, density=None)


def _layers(problem: Problem, closed: ClosedForm | None) -> list[r.LayerCurvature] | None:
    if closed is None or problem.structure is None:
        return None
    parts = []
    for index, layer in enumerate(problem.structure.net.layers):
        t, q = float(closed.layer_traces[index]), float(closed.block_squares[index, index])
        upper = wolkowicz_styan(t, q, layer.parameters).lambda_max_upper if layer.parameters else 0.0
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
