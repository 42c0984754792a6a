"""The first stage of an analysis: everything that can be refused is refused here, before any long work."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from wsb_engine.analysis import coupling
from wsb_engine.analysis import inputs as prepare
from wsb_engine.analysis.monitor import Monitor
from wsb_engine.analysis.perturbation import PERTURBATION, perturbed
from wsb_engine.batch import Batch
from wsb_engine.curvature.closed_form.mlp import Network, forward_backward, network
from wsb_engine.curvature.cost import PRODUCT_OPERATIONS, WORKING_SHARE, Footprint, gradient_footprint, logits_footprint
from wsb_engine.curvature.losses import Targets, automatic
from wsb_engine.curvature.losses.base import LARGEST_EXPONENT, power_of_four
from wsb_engine.curvature.products.autodiff import (
    COLUMNS,
    GRADIENT_SAMPLES,
    AutodiffProduct,
    HessianProduct,
    Objective,
    in_layout,
    interrupted,
)
from wsb_engine.curvature.products.linearized import WORTHWHILE, LinearizedProduct
from wsb_engine.curvature.products.mlp import MLPProduct
from wsb_engine.curvature.products.stepping import SteppingProduct
from wsb_engine.curvature.team import SplitProduct, Team
from wsb_engine.curvature.threads import ONE_THREAD_OPERATIONS, threads_of
from wsb_engine.curvature.tracing.smoothness import nonsmooth_operators
from wsb_engine.errors import ModelError, ResourceError
from wsb_engine.formats.heads import looks_like_probabilities
from wsb_engine.model import MLP, Classifier, LogitModel
from wsb_engine.options import Options

BLOCK_SHARE = 0.125
"""Of the memory limit, for a block of columns; products hold several of its size."""
CHUNK_BYTES = 32 << 20
"""Intermediates of one chunk of a linearised gradient: what is made after them finds room in the caches."""
SMALL = 2.0**-20
"""Curvature next to the gradient below which H is looked at before it is scaled."""
LARGEST_SINGLE, LARGEST_DOUBLE = 2.0**96, 2.0**LARGEST_EXPONENT
"""By which the gradient can be multiplied, with room for inputs and weights."""
STRUCTURE_UNITS = 1e4
"""Units of rounding of the largest logit by which two ways of evaluating the same network may differ."""
SENSITIVITY = 256.0
"""Multiple of what a perturbation of the size of rounding changes, up to which a difference is rounding."""
LEAST_CHUNK = 64
"""Samples in one; with fewer, the calls of operators cost more than what they do."""


@dataclass(frozen=True)
class Structure:
    """The MLP behind the logits."""

    mlp: MLP
    net: Network
    error: float
    """max |z_mlp − z| on the first chunk."""
    tolerance: float
    """What rounding explains of it."""


@dataclass(frozen=True)
class Problem:
    """A well-posed analysis."""

    model: LogitModel
    objective: Objective
    logits: Tensor
    """(N, C) float64 on the CPU."""
    structure: Structure | None
    """Where the closed form applies."""
    nonsmooth: tuple[str, ...]
    memory: int
    footprint: Footprint
    """Of one sample's gradient."""
    warn: Callable[[str, str], None]
    """Adds a code and a message to the report."""
    team: Team | None = None
    """Who shares products and the closed form, where several devices or processes do."""

    @property
    def samples(self) -> int:
        return len(self.objective.targets.weights)

    @property
    def product_operations(self) -> float:
        """What one Hessian-vector product costs."""
        return PRODUCT_OPERATIONS * self.footprint.operations * self.samples

    def tile(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """a_0 in the working dtype and targets of some samples, where there is a structure."""
        if self.structure is None:
            raise ValueError("only an MLP has a first layer")
        rows, objective = slice(start, stop), self.objective
        objective.pause()
        a0 = self.structure.mlp.features(objective.chunk_inputs(rows))
        return a0, objective.targets.y[rows]

    def at(self, objective: Objective) -> Problem:
        """The same model at another objective of it (moved parameters, another dtype), on one member."""
        if self.structure is None:
            return replace(self, objective=objective, team=None)
        parameters = {**objective.fixed, **objective.selected}
        net = network(self.structure.mlp, parameters, frozenset(objective.selected), objective.loss, objective.scale)
        return replace(self, objective=objective, structure=replace(self.structure, net=net), team=None)

    def product_at(self, objective: Objective, columns: int = 1) -> HessianProduct:
        """The product of another objective of the same model: by hand if it is an MLP, else from scratch."""
        if self.structure is None:
            return self.from_scratch(objective, columns=columns)
        return self.at(objective).hessian_product(columns)

    def hessian_product(self, columns: int = COLUMNS) -> HessianProduct:
        """The fastest that fits, for blocks of at most so many columns; it steps down where memory runs out."""
        columns = max(1, min(columns, self._vectors()))
        if self.team is not None:
            return SplitProduct(self.objective, columns, self.team)
        return SteppingProduct(self._way(columns), self.warn)

    def from_scratch(self, objective: Objective, columns: int = 1) -> HessianProduct:
        """Products by automatic differentiation of the file's own graph, which share nothing with others."""
        return SteppingProduct(self._autodiff(objective, max(1, min(columns, self._vectors()))), self.warn)

    def _way(self, columns: int) -> HessianProduct:
        if self.structure is not None:
            mlp, net = self.structure.mlp, self.structure.net
            return MLPProduct(self.objective, mlp, net, self.tile, memory=self.memory, columns=columns)
        kept = self.footprint.bytes * self.samples
        if self.samples > 1 and kept >= WORTHWHILE and self.samples <= self.objective.fits:
            # Also for blocks: at this size one column after another is faster than columns side by side from scratch.
            threads = self._threads()
            return LinearizedProduct(self.objective, columns, self._chunk(threads), threads=threads)
        return self._autodiff(self.objective, columns)

    def _autodiff(self, objective: Objective, columns: int) -> AutodiffProduct:
        product = AutodiffProduct(objective, columns)
        if columns == 1 and not objective.coupled:
            # More at a time would be written to memory that the system has to find and clear first.
            product.samples = min(product.samples, self._chunk(threads=1))
        return product

    def _vectors(self) -> int:
        """As many as are held at a time, of P numbers in float64."""
        return int(self.memory * BLOCK_SHARE) // (8 * self.objective.parameters)

    def _threads(self) -> int:
        """That each multiply by samples of their own."""
        if self.objective.device.type != "cpu":
            return 1
        return max(1, min(torch.get_num_threads(), self.samples // LEAST_CHUNK, self._vectors()))

    def _chunk(self, threads: int) -> int:
        """Samples whose intermediates a CPU's caches hold, as many for each thread; elsewhere many, side by side."""
        if self.objective.coupled:
            return self.samples
        if self.objective.device.type != "cpu":
            return GRADIENT_SAMPLES
        most = min(GRADIENT_SAMPLES, max(LEAST_CHUNK, CHUNK_BYTES // max(self.footprint.bytes, 1)))
        return math.ceil(self.samples / (threads * math.ceil(self.samples / (threads * most))))


def pose(classifier: Classifier, batch: Batch, options: Options, monitor: Monitor) -> Problem:
    """Checks model, batch and options against each other and evaluates the logits.

    Raises:
        ModelError, BatchError, OptionsError: with a code and advice.
    """
    device = prepare.device(options)
    model = classifier.resolve(head=options.head, output=options.output)
    inputs = prepare.match_inputs(classifier.inputs, batch)
    names = prepare.select(model.parameters, options.parameters)
    dtype = prepare.dtype(options, device, sum(model.parameters[name].numel() for name in names))
    tensors = {name: tensor.to(device, dtype) for name, tensor in model.parameters.items()}
    memory = prepare.memory_limit(options, device)
    objective = Objective(
        function=model.function,
        selected={name: tensors[name] for name in names},
        fixed={name: tensor for name, tensor in tensors.items() if name not in names},
        inputs=inputs,
        # Both are set once the number of logits is known.
        loss=automatic(0),
        targets=Targets(torch.zeros(0), torch.ones(len(batch))),
        dtype=dtype,
        device=device,
        interrupt=monitor.interrupt,
    )
    forward = logits_footprint(objective)
    objective = _fitted(objective, forward, memory)
    one_thread = forward.operations * len(batch) <= ONE_THREAD_OPERATIONS
    with threads_of(device, one=one_thread):
        objective, logits = _evaluated(objective, classifier, memory, monitor)
        if options.head == "auto" and model.head == "none" and looks_like_probabilities(logits):
            model = classifier.resolve(head="probabilities", output=options.output)
            monitor.warn(
                "head_probed", "every output row is a probability distribution: logits are taken as its logarithm"
            )
            objective = replace(objective, function=model.function)
            objective, logits = _evaluated(objective, classifier, memory, monitor)
    loss = automatic(logits.shape[1])
    targets = prepare.targets(batch, loss, logits.shape[1], model.classes, device)
    objective = replace(objective, loss=loss, targets=targets, scale=loss.scale(logits.to(device), targets))
    first = objective.chunk_inputs(slice(0, len(batch) if objective.coupled else 1))
    nonsmooth = nonsmooth_operators(model.function, tensors, first)
    if nonsmooth:
        monitor.warn(
            "not_smooth",
            f"{', '.join(nonsmooth)}: the Hessian exists only almost everywhere, and its closed form does not apply",
        )
    with threads_of(device, one=one_thread):
        structure = None if nonsmooth or objective.coupled else _structure(model, objective, logits, monitor)
    objective = _laid_out(objective)
    footprint = gradient_footprint(objective)
    objective = _fitted(objective, footprint, memory)
    problem = Problem(model, objective, logits, structure, nonsmooth, memory, footprint, monitor.warn)
    least = loss.least_curvature(logits.to(device), targets)
    return problem if least * objective.scale > SMALL else _rescaled(problem)


def _rescaled(problem: Problem) -> Problem:
    """The problem at a scale at which H is of the size of 1, if it is far smaller than the gradient of the loss.

    That is so if the gradient does not enter H, as in affine models, or enters it in dead units alone: the squares of H
    may then leave the range of numbers.

    Raises:
        ResourceError: ``underflow`` if float32 can't hold both.
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


def _laid_out(objective: Objective) -> Objective:
    """With channels last where something looks like the kernel of a two-dimensional convolution.

    A convolution on a CPU is made on tensors laid out so, and without that each of a product's rearranges its tensors
    first, which takes a third of the time. torch has no forward derivative of some operators (group normalisation)
    in this layout: then all stays as it was.
    """
    tensors = {**objective.fixed, **objective.selected}
    if not any(tensor.ndim == 4 and tensor[0, 0].numel() > 1 for tensor in tensors.values()):
        return objective
    laid_out = replace(
        objective,
        layout=torch.channels_last,
        selected={name: in_layout(tensor, torch.channels_last) for name, tensor in objective.selected.items()},
        fixed={name: in_layout(tensor, torch.channels_last) for name, tensor in objective.fixed.items()},
    )
    few = replace(
        laid_out,
        coupled=False,
        targets=replace(objective.targets, y=objective.targets.y[:2], weights=objective.targets.weights[:2]),
    )
    try:
        for columns in (1, 2):
            V = torch.ones(few.parameters, columns, dtype=few.dtype, device=few.device)
            AutodiffProduct(few, columns)(V)
    except RuntimeError as error:
        if interrupted(error):
            raise
        return objective
    return laid_out


def _fitted(objective: Objective, footprint: Footprint, memory: int) -> Objective:
    """With as many samples at a time as memory holds; coupled ones are held all, in float64 too, to compare with.

    Raises:
        ResourceError: ``samples_coupled`` if they don't fit.
    """
    needed = footprint.bytes * (torch.float64.itemsize // objective.dtype.itemsize) * objective.samples
    if objective.coupled and needed > memory * WORKING_SHARE:
        raise ResourceError(
            f"the logits of a sample depend on the other samples, and all {objective.samples} of them together need "
            f"{needed / WORKING_SHARE:.2g} bytes; the memory limit is {memory:.2g}",
            code=coupling.CODE,
            advice="Raise memory_limit, send fewer samples, or export the model in evaluation mode (fixed statistics).",
            needed=int(needed / WORKING_SHARE),
            limit=memory,
        )
    return replace(objective, fits=footprint.fits(memory))


def _evaluated(objective: Objective, classifier: Classifier, memory: int, monitor: Monitor) -> tuple[Objective, Tensor]:
    """Finite logits, of all samples together if they depend on each other."""
    if not objective.coupled and coupling.coupled_in_place(objective):
        objective = _together(objective, classifier, memory, monitor)
    logits = _logits(objective, monitor)
    if not objective.coupled and coupling.coupled_elsewhere(objective, logits):
        objective = _together(objective, classifier, memory, monitor)
        logits = _logits(objective, monitor)
    _require_finite(logits)
    return objective, logits


def _together(objective: Objective, classifier: Classifier, memory: int, monitor: Monitor) -> Objective:
    coupling.require_free_batch(classifier.inputs, objective.samples)
    monitor.warn(coupling.CODE, coupling.MESSAGE)
    objective = replace(objective, coupled=True)
    return _fitted(objective, logits_footprint(objective), memory)


def _logits(objective: Objective, monitor: Monitor) -> Tensor:
    """(N, C) logits, float64 on the CPU, in chunks."""
    parts = []
    with torch.no_grad():
        for rows in objective.chunks():
            z = objective.logits(rows)
            if z.ndim != 2 or len(z) != rows.stop - rows.start or z.shape[1] == 0:
                raise ModelError(
                    f"the model gives shape {list(z.shape)} for {rows.stop - rows.start} samples, not [N, C]",
                    code="unsupported_output",
                    advice="A classifier gives one row of logits or probabilities a sample; choose it with output.",
                )
            parts.append(z.double().cpu())
            monitor.report(rows.stop / objective.samples)
    return torch.cat(parts)


def _require_finite(logits: Tensor) -> None:
    if not bool(torch.isfinite(logits).all()):
        row = int(torch.nonzero(~torch.isfinite(logits).all(dim=1))[0])
        raise ModelError(
            f"the logits of row {row} are not finite",
            code="logits_not_finite",
            advice="Check the scale of the inputs; probabilities that underflow to 0 need the logits exported instead.",
            row=row,
        )


def _structure(model: LogitModel, objective: Objective, logits: Tensor, monitor: Monitor) -> Structure | None:
    """The MLP that the reader recognised, if its own forward pass agrees with the logits."""
    if model.mlp is None:
        return None
    parameters = {**objective.fixed, **objective.selected}
    net = network(model.mlp, parameters, frozenset(objective.selected), objective.loss, objective.scale)
    if not any(layer.parameters for layer in net.layers):
        return None  # what is selected is no layer's
    rows = next(objective.chunks())
    a0 = model.mlp.features(objective.chunk_inputs(rows))
    if a0.ndim == 2 and a0.shape[1] == net.layers[0].d_in:
        z = forward_backward(net, a0, objective.targets.y[rows]).z.double().cpu()
        error = float((z - logits[rows]).abs().max())
        tolerance = STRUCTURE_UNITS * torch.finfo(objective.dtype).eps * max(1.0, float(logits.abs().max()))
        if error > tolerance:
            tolerance = max(tolerance, _sensitivity(objective, rows))
        if error <= tolerance:
            return Structure(model.mlp, net, error, tolerance)
    monitor.warn(
        "structure_mismatch", "the network looked like an MLP but does not evaluate as one: treated as general"
    )
    return None


def _sensitivity(objective: Objective, rows: slice) -> float:
    """How far rounding may move logits of some samples, by what perturbing parameters and inputs does to them."""
    exact = objective.in_double()
    with torch.no_grad():
        moved, logits = (each.logits(rows).double() for each in (perturbed(exact, seed=0), exact))
    unit = torch.finfo(objective.dtype).eps / 2
    return SENSITIVITY * unit / PERTURBATION * float((moved - logits).abs().max())
