"""The first stage of an analysis: whatever can be rejected is rejected here, before any long computation."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from wsb_engine.analysis import coupling
from wsb_engine.analysis import inputs as prepare
from wsb_engine.analysis import targets as labelled
from wsb_engine.analysis.logits import BatchLogits, evaluated
from wsb_engine.analysis.monitor import Monitor
from wsb_engine.analysis.perturbation import PERTURBATION, perturbed
from wsb_engine.batch import Batch
from wsb_engine.curvature.closed_form.mlp import Network, forward_backward, network
from wsb_engine.curvature.closed_form.scales import LayerScale
from wsb_engine.curvature.cost import (
    PRODUCT_OPERATIONS,
    WORKING_SHARE,
    WORKING_VECTORS,
    Footprint,
    gradient_footprint,
    logits_footprint,
    nominal_rate,
)
from wsb_engine.curvature.losses import LOSSES, Output, Targets, automatic, configured
from wsb_engine.curvature.losses.base import LARGEST_EXPONENT, power_of_four
from wsb_engine.curvature.products.autodiff import (
    COLUMNS,
    GRADIENT_SAMPLES,
    AutodiffProduct,
    HessianProduct,
    Objective,
    in_format,
    interrupted,
)
from wsb_engine.curvature.products.linearized import WORTHWHILE, LinearizedProduct, calls_dominate, pays
from wsb_engine.curvature.products.mlp import MLPProduct
from wsb_engine.curvature.products.stepping import SteppingProduct, not_differentiable
from wsb_engine.curvature.team import SplitProduct, Team
from wsb_engine.curvature.threads import ONE_THREAD_OPERATIONS, threads_of
from wsb_engine.curvature.tracing.indices import indices_in_range
from wsb_engine.curvature.tracing.smoothness import nonsmooth_operators
from wsb_engine.errors import BatchError, ModelError, ResourceError
from wsb_engine.memory import ran_out
from wsb_engine.model import MLP, Classifier, LogitModel
from wsb_engine.options import Options

BLOCK_SHARE = 0.125
"""Share of the memory limit for a block of columns; products hold several arrays of its size."""
CHUNK_BYTES = 32 << 20
"""Bytes of intermediates of one chunk of a linearised gradient; what follows then fits in the caches."""
SMALL = 2.0**-20
"""Curvature relative to the gradient below which H itself determines the scale."""
LARGEST_SINGLE, LARGEST_DOUBLE = 2.0**96, 2.0**LARGEST_EXPONENT
"""Largest factors of the gradient in float32 and float64, with room for inputs and weights."""
STRUCTURE_UNITS = 1e4
"""Units of rounding of the largest logit by which two evaluations of the same network may differ."""
SENSITIVITY = 256.0
"""Multiple of the effect of a perturbation of the size of rounding, up to which a difference counts as rounding."""
LEAST_CHUNK = 64
"""Smallest number of samples in a chunk; with fewer, calling operators costs more than their work."""
CHUNK_OPERATIONS = 1e10
"""Operations of the gradient of a chunk that are enough, even of fewer samples: a caller can interrupt after each."""
PARAMETER_OPERATIONS = 1e3
"""The same for each parameter, because each chunk's product is another array of their size."""


@dataclass(frozen=True)
class Structure:
    """The MLP behind the logits."""

    mlp: MLP
    net: Network
    error: float
    """max |z_mlp − z| on the first chunk."""
    tolerance: float
    """Largest error that rounding explains."""


@dataclass(frozen=True)
class Problem:
    """A well-posed analysis."""

    model: LogitModel
    objective: Objective
    logits: BatchLogits
    structure: Structure | None
    """None if the closed form does not apply."""
    nonsmooth: tuple[str, ...]
    memory: int
    footprint: Footprint
    """Cost of one sample's gradient."""
    warn: Callable[[str, str], None]
    """Adds a code and a message to the report."""
    count: Callable[[int], None]
    """Counts Hessian-vector products."""
    expected: int
    """Products of single vectors to expect."""
    team: Team | None = None
    """The devices or processes that share products and the closed form; None for one."""

    @property
    def samples(self) -> int:
        return len(self.objective.targets.weights)

    @property
    def product_operations(self) -> float:
        """Operations of one Hessian-vector product."""
        return PRODUCT_OPERATIONS * self.footprint.operations * self.samples

    @property
    def layer_scales(self) -> tuple[LayerScale, ...] | None:
        """D of D H D by layer of an MLP, for problems about that; None for H."""
        return None

    @property
    def provable(self) -> bool:
        """True if the running error analysis of an MLP covers the numbers of this problem."""
        return True

    def tile(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Return a_0 in the working dtype and targets of some samples of an MLP."""
        if self.structure is None:
            raise ValueError("only an MLP has a first layer")
        rows, objective = slice(start, stop), self.objective
        objective.pause()
        a0 = self.structure.mlp.features(objective.chunk_inputs(rows))
        return a0, objective.targets.rows(rows)

    def at(self, objective: Objective) -> Problem:
        """Return the problem at another objective of the model (moved parameters, another dtype), on one member."""
        if self.structure is None:
            return replace(self, objective=objective, team=None)
        structure = replace(self.structure, net=_network(self.structure.mlp, objective))
        return replace(self, objective=objective, structure=structure, team=None)

    def product_at(self, objective: Objective, columns: int = 1) -> HessianProduct:
        """Return the product of another objective of the model: by hand if it is an MLP, else from scratch."""
        if self.structure is None:
            return self.from_scratch(objective, columns=columns)
        return self.at(objective).hessian_product(columns)

    def hessian_product(self, columns: int = COLUMNS) -> HessianProduct:
        """Return the fastest product that fits, for blocks of at most ``columns``; it steps down if memory runs out."""
        columns = max(1, min(columns, vectors(self.objective, self.memory)))
        if self.team is not None:
            return SplitProduct(self.objective, columns, self.team, self.count)
        return self._stepping(self._way(columns))

    def from_scratch(self, objective: Objective, columns: int = 1) -> HessianProduct:
        """Return products by automatic differentiation of the file's graph, which share nothing with other products."""
        columns = max(1, min(columns, vectors(self.objective, self.memory)))
        return self._stepping(self._autodiff(objective, columns))

    def _stepping(self, way: HessianProduct) -> SteppingProduct:
        objective = way.objective
        together, itemsize = objective.samples if objective.coupled else 1, objective.dtype.itemsize
        # Intermediates and their derivatives; the direction, its image, and the gradient with its derivative.
        intermediates = 2 * together * self.footprint.bytes * itemsize // self.objective.dtype.itemsize
        least = intermediates + objective.parameters * (3 * itemsize + torch.float64.itemsize)
        return SteppingProduct(way, self.warn, self.count, least)

    def _way(self, columns: int) -> HessianProduct:
        if self.structure is not None:
            mlp, net = self.structure.mlp, self.structure.net
            return MLPProduct(self.objective, mlp, net, self.tile, memory=self.memory, columns=columns)
        kept = self.footprint.bytes * self.samples
        fits = self.samples <= self.objective.fits and kept + self._vector_bytes <= self.memory
        if self.samples > 1 and kept >= WORTHWHILE and fits and self._traces(columns):
            # Also for blocks: at this size, column after column is faster than all columns together from scratch.
            threads = self._threads()
            return LinearizedProduct(self.objective, columns, self._chunk(threads), threads=threads)
        return self._autodiff(self.objective, columns)

    def _traces(self, columns: int) -> bool:
        """Return whether tracing pays at the nominal rate; blocks of columns multiply by all of the identity."""
        objective, footprint = self.objective, self.footprint
        seconds = footprint.operations * self.samples / nominal_rate(objective.device, objective.dtype)
        scratch = self._autodiff(objective, columns)
        reverse = scratch.reverse and scratch.columns == 1
        products = objective.parameters if columns > 1 else self.expected
        return pays(seconds, footprint.operators, products, reverse=reverse)

    def _autodiff(self, objective: Objective, columns: int) -> AutodiffProduct:
        product = AutodiffProduct(objective, columns)
        if columns == 1 and not objective.coupled:
            # More samples would be written to memory that the system has to allocate and clear first.
            product.samples = min(product.samples, self._chunk(threads=1))
        work = self.footprint.operations * product.samples / nominal_rate(objective.device, objective.dtype)
        many_calls = not objective.coupled and calls_dominate(work, self.footprint.operators)
        # In reverse mode a product holds no gradient beside its sum, and fewer intermediates.
        preferred = many_calls or self.is_short_of_memory
        product.reverse = objective.arithmetic is not None or (preferred and not self.has_own_backward)
        return product

    @property
    def is_short_of_memory(self) -> bool:
        """True if vectors take most of the memory."""
        return self._vector_bytes > WORKING_SHARE * self.memory

    @property
    def _vector_bytes(self) -> int:
        return WORKING_VECTORS * torch.float64.itemsize * self.objective.parameters

    @cached_property
    def has_own_backward(self) -> bool:
        return self.objective.has_own_backward()

    def _threads(self) -> int:
        """Return the number of threads; each multiplies its own samples."""
        if self.objective.device.type != "cpu":
            return 1
        return max(1, min(torch.get_num_threads(), self.samples // LEAST_CHUNK, vectors(self.objective, self.memory)))

    def _chunk(self, threads: int) -> int:
        """Return the samples in a chunk: on a CPU as many as its caches hold, equal for each thread; elsewhere many."""
        if self.objective.coupled:
            return self.samples
        if self.objective.device.type != "cpu":
            return GRADIENT_SAMPLES
        enough = max(CHUNK_OPERATIONS, PARAMETER_OPERATIONS * self.objective.parameters)
        least = min(LEAST_CHUNK, math.ceil(enough / max(self.footprint.operations, 1)))
        most = min(GRADIENT_SAMPLES, max(least, CHUNK_BYTES // max(self.footprint.bytes, 1)))
        if least < LEAST_CHUNK:
            # One trace serves all chunks of a size.
            most = next((size for size in range(most, most // 2, -1) if self.samples % size == 0), most)
        return math.ceil(self.samples / (threads * math.ceil(self.samples / (threads * most))))


def vectors(objective: Objective, memory: int) -> int:
    """Return the number of vectors of P float64 numbers that are held at once in that many bytes to work in."""
    return int(memory * BLOCK_SHARE) // (torch.float64.itemsize * objective.parameters)


def pose(
    classifier: Classifier, batch: Batch, options: Options, monitor: Monitor, *, samples: int | None = None
) -> Problem:
    """Check model, batch and options against each other, and evaluate the logits.

    Args:
        classifier, batch, options, monitor: Of the analysis.
        samples: Number of samples of the analysis if the batch has only some of them; the working precision depends
            on it.

    Raises:
        ModelError, BatchError, OptionsError: with a code and advice.
    """
    prepare.require_enclosure(options)
    device = prepare.device(options)
    include = prepare.included(classifier, options.parameters)
    wanted = labelled.wanted(batch, options)
    loss = automatic(0) if wanted == "auto" else LOSSES[wanted]
    model = classifier.resolve(head=options.head, output=options.output, include=include, form=loss.form)
    for code, message in model.warnings:
        monitor.warn(code, message)
    inputs = prepare.match_inputs(classifier.inputs, batch)
    names = prepare.select(model.parameters, options.parameters)
    memory = prepare.memory_limit(options, device)
    dtype = prepare.dtype(options, device, sum(model.parameters[name].numel() for name in names), memory)
    tensors = {name: tensor.to(device, dtype) for name, tensor in model.parameters.items()}
    objective = Objective(
        function=model.function,
        selected={name: tensors[name] for name in names},
        fixed={name: tensor for name, tensor in tensors.items() if name not in names},
        inputs=inputs,
        widened=prepare.widened(classifier.inputs, inputs),
        # Both are set once the shape of the logits is known.
        loss=loss,
        targets=Targets(torch.zeros(0), torch.ones(1).expand(len(batch))),
        dtype=dtype,
        device=device,
        interrupt=monitor.interrupt,
    )
    with indices_in_range(device):
        objective, forward = _first_forward(objective, monitor)
    if dtype == torch.float64 and prepare.too_dear_in_double(
        options, device, forward.operations * (samples or len(batch))
    ):
        tensors = {name: tensor.to(device, torch.float32) for name, tensor in model.parameters.items()}
        selected, fixed = ({name: tensors[name] for name in part} for part in (objective.selected, objective.fixed))
        objective = replace(objective, selected=selected, fixed=fixed, dtype=torch.float32)
        forward = logits_footprint(objective)
    takes_any = objective.function is model.function
    if not takes_any:
        model = coupling.in_groups_of(model, objective.group)
    if loss.form != "row":
        objective = labelled.in_rows(objective, batch, options, model.class_axis, monitor.warn)
    objective = _fitted(objective, forward, memory)
    one_thread = forward.operations * len(batch) <= ONE_THREAD_OPERATIONS
    with threads_of(device, one=one_thread), indices_in_range(device):
        objective, logits = _evaluated(objective, classifier, memory, monitor)
        if options.head == "auto" and model.head == "none" and logits.are_probabilities:
            model = classifier.resolve(head="probabilities", output=options.output, include=include, form=loss.form)
            monitor.warn(
                "head_probed", "every output row is a probability distribution: logits are taken as its logarithm"
            )
            if not takes_any:
                model = coupling.in_groups_of(model, objective.group)
            function = model.function if loss.form == "row" else labelled.flattened(model.function)
            objective = replace(objective, function=function)
            objective, logits = _evaluated(objective, classifier, memory, monitor)
    if not model.head_known:
        logits.require_logits(loss.form, monitor.warn)
    if loss.form == "row":
        kind = automatic(logits.classes).kind if wanted == "auto" else wanted
        objective = replace(objective, loss=configured(kind, options, Output((logits.classes,))))
    loss = objective.loss
    targets = labelled.targets(batch, loss, logits.classes, model.classes, options, device)
    objective = replace(objective, targets=targets)
    with threads_of(device, one=one_thread):
        sizes = loss.sizes(logits.compared(objective))
    objective = replace(objective, scale=sizes.scale)
    first = objective.chunk_inputs(slice(0, len(batch) if objective.coupled else 1))
    nonsmooth = nonsmooth_operators(objective.function, tensors, first)
    if nonsmooth:
        monitor.warn(
            "not_smooth",
            f"{', '.join(nonsmooth)}: the Hessian exists only almost everywhere, and its closed form does not apply",
        )
    with threads_of(device, one=one_thread):
        structure = None if nonsmooth or objective.coupled else _structure(model, objective, logits, monitor)
    objective = _laid_out(objective, 2 if vectors(objective, memory) >= COLUMNS else 1)
    footprint = _backward_footprint(objective)
    objective = _fitted(objective, footprint, memory)
    warn, count, expected = monitor.warn, monitor.multiplied, prepare.expected_products(options, objective.parameters)
    problem = Problem(model, objective, logits, structure, nonsmooth, memory, footprint, warn, count, expected)
    return problem if sizes.least_curvature * objective.scale > SMALL else _rescaled(problem)


def _first_forward(objective: Objective, monitor: Monitor) -> tuple[Objective, Footprint]:
    """Return the objective and the footprint of one sample's logits; in groups if the file takes no other number.

    The advice for images in the other layout is to transpose them.
    """
    try:
        footprint = logits_footprint(objective)
        size = None if coupling.gives_rows(objective) else coupling.fixed_size(objective)
        if size is None:
            return objective, footprint
    except (ModelError, RuntimeError) as error:
        if interrupted(error):
            raise
        for name, x in objective.inputs.items():
            for axes in prepare.LAYOUTS if x.ndim == 4 else ():
                other = replace(objective, inputs={**objective.inputs, name: x.permute(axes)})
                with suppress(ModelError, RuntimeError):
                    logits_footprint(other)
                    raise BatchError(
                        f"the model can't evaluate input {name!r} of shape {list(x.shape)}",
                        code="feature_count_mismatch",
                        advice=prepare.transposing(axes),
                        input=name,
                        actual=list(x.shape),
                    ) from error
        misfit = isinstance(error, ModelError) and error.code == "evaluation_failed"
        size = coupling.fixed_size(objective) if misfit else None
        if size is None:
            raise
    monitor.warn(*coupling.told_of_groups(size))
    objective = replace(objective, function=coupling.grouped(objective.function, size), group=size)
    return objective, logits_footprint(objective)


def _backward_footprint(objective: Objective) -> Footprint:
    """Return the footprint of one sample's gradient.

    Raises:
        ModelError: ``not_differentiable``.
    """
    try:
        return gradient_footprint(objective)
    except RuntimeError as error:
        if interrupted(error) or ran_out(error):
            raise
        raise not_differentiable(error) from error


def _rescaled(problem: Problem) -> Problem:
    """Return the problem at a scale at which H is of the size of 1, if it is far smaller than the gradient of the loss.

    That is so if the gradient does not enter H, as in affine models, or enters it in dead units alone: the squares of H
    may then leave the range of numbers.

    Raises:
        ResourceError: ``underflow`` if float32 can't represent both.
    """
    objective = problem.objective
    v = torch.randn(objective.parameters, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    image = problem.from_scratch(objective.in_double()).vector(v.to(objective.device))
    largest = float(image.abs().max())
    if largest == 0 or largest > SMALL:
        return problem
    factor = power_of_four(largest)
    if factor > (LARGEST_SINGLE if objective.dtype == torch.float32 else LARGEST_DOUBLE):
        if objective.dtype == torch.float32:
            raise ResourceError(
                "in float32 the curvature of this batch's loss is too small beside its gradient",
                code="underflow",
                advice="Use dtype float64.",
            )
        factor = LARGEST_DOUBLE
    scale, structure = objective.scale * factor, problem.structure
    if structure is not None:
        structure = replace(structure, net=replace(structure.net, scale=scale))
    return replace(problem, objective=replace(objective, scale=scale), structure=structure)


def _laid_out(objective: Objective, columns: int) -> Objective:
    """Return the objective with channels last if a parameter may be the kernel of a two-dimensional convolution.

    Convolutions on a CPU work in this format and otherwise convert their tensors in every product, which takes a third
    of the time. torch has no forward derivative of some operators (group normalisation) in this format: then nothing
    changes.

    Args:
        objective: The loss.
        columns: 2 if many columns fit in memory together, so that products of blocks are worth a trial; 1 otherwise.
    """
    tensors = {**objective.fixed, **objective.selected}
    if not any(tensor.ndim == 4 and tensor[0, 0].numel() > 1 for tensor in tensors.values()):
        return objective
    laid_out = replace(
        objective,
        memory_format=torch.channels_last,
        selected={name: in_format(tensor, torch.channels_last) for name, tensor in objective.selected.items()},
        fixed={name: in_format(tensor, torch.channels_last) for name, tensor in objective.fixed.items()},
    )
    few = replace(
        laid_out,
        coupled=False,
        targets=objective.targets.part(slice(0, 2), objective.device),
    )
    try:
        for tried in range(1, columns + 1):
            V = torch.ones(few.parameters, tried, dtype=few.dtype, device=few.device)
            AutodiffProduct(few, tried)(V)
    except RuntimeError as error:
        if interrupted(error):
            raise
        return objective
    return laid_out


def _fitted(objective: Objective, footprint: Footprint, memory: int) -> Objective:
    """Return the objective with as many samples at once as fit; coupled samples must all fit, in float64 too.

    Raises:
        ResourceError: ``samples_coupled`` if coupled samples don't fit.
    """
    double = footprint.in_double()
    needed = math.ceil(double.held * objective.samples / WORKING_SHARE)
    if objective.coupled and needed > memory:
        raise ResourceError(
            f"the logits of a sample depend on the other samples, and all {objective.samples} of them together need "
            f"{needed:.2g} bytes; the memory limit is {memory:.2g}",
            code=coupling.CODE,
            advice=f"Set memory_limit to at least {needed}, send fewer samples, or export the model in evaluation mode "
            "(fixed statistics).",
            needed=needed,
            limit=memory,
        )
    P = objective.parameters
    return replace(objective, fits=footprint.fits(memory, P), fits_in_double=double.fits(memory, P))


def _evaluated(
    objective: Objective, classifier: Classifier, memory: int, monitor: Monitor
) -> tuple[Objective, BatchLogits]:
    """Return the objective and its finite logits, coupled if samples depend on each other."""
    if not objective.coupled and coupling.coupled_in_place(objective):
        objective = _together(objective, classifier, memory, monitor)
    logits = evaluated(objective, memory, monitor.report)
    if not objective.coupled and coupling.coupled_elsewhere(objective, logits):
        objective = _together(objective, classifier, memory, monitor)
        logits = evaluated(objective, memory, monitor.report)
    logits.require_finite()
    return objective, logits


def _together(objective: Objective, classifier: Classifier, memory: int, monitor: Monitor) -> Objective:
    if coupling.takes_one(classifier.inputs):
        monitor.warn(coupling.ALONE, coupling.EACH_ALONE)
        return replace(objective, function=coupling.grouped(objective.function, 1))
    coupling.require_free_batch(classifier.inputs, objective)
    monitor.warn(coupling.CODE, coupling.MESSAGE)
    objective = replace(objective, coupled=True)
    return _fitted(objective, logits_footprint(objective), memory)


def _structure(model: LogitModel, objective: Objective, logits: BatchLogits, monitor: Monitor) -> Structure | None:
    """Return the MLP that the reader recognised, if its forward pass agrees with the logits."""
    if model.mlp is None:
        return None
    net = _network(model.mlp, objective)
    if not any(layer.parameters for layer in net.layers):
        return None  # no selected parameter belongs to a layer
    rows = next(objective.chunks())
    a0 = model.mlp.features(objective.chunk_inputs(rows))
    if a0.shape == (rows.stop - rows.start, net.layers[0].d_in):
        z = forward_backward(net, a0, objective.targets.rows(rows)).z.double().cpu()
        error = float((z - logits.rows(objective, rows)).abs().max())
        tolerance = STRUCTURE_UNITS * torch.finfo(objective.dtype).eps * max(1.0, logits.largest)
        if error > tolerance:
            tolerance = max(tolerance, _sensitivity(objective, rows))
        if error <= tolerance:
            return Structure(model.mlp, net, error, tolerance)
    elif objective.loss.form != "row":
        return None  # an MLP of each position
    monitor.warn(
        "structure_mismatch", "the network looked like an MLP but does not evaluate as one: treated as general"
    )
    return None


def _network(mlp: MLP, objective: Objective) -> Network:
    parameters = {**objective.fixed, **objective.selected}
    return network(mlp, parameters, frozenset(objective.selected), objective.loss, objective.scale)


def _sensitivity(objective: Objective, rows: slice) -> float:
    """Bound how far rounding may move logits of some samples, from perturbed parameters and inputs."""
    exact = objective.in_double()
    with torch.no_grad():
        moved, logits = (each.logits(rows).double() for each in (perturbed(exact, seed=0), exact))
    unit = torch.finfo(objective.dtype).eps / 2
    return SENSITIVITY * unit / PERTURBATION * float((moved - logits).abs().max())
