"""estimate(): what an analysis will cost, counted on a few samples before it runs."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import replace

import numpy as np
import torch

from wsb_engine import devices
from wsb_engine.analysis import inputs, moments
from wsb_engine.analysis.krylov import spare, without_basis
from wsb_engine.analysis.logits import kept_bytes
from wsb_engine.analysis.monitor import Monitor
from wsb_engine.analysis.problem import Problem, pose, vectors
from wsb_engine.analysis.questions import costs, population
from wsb_engine.analysis.rounding import DIFFERENCES, MOVED, PERTURBATIONS
from wsb_engine.analysis.targets import counting_rows, wanted
from wsb_engine.batch import Batch
from wsb_engine.costs import Estimate, PhaseEstimate
from wsb_engine.curvature.closed_form.layout import Layout, held_bytes
from wsb_engine.curvature.cost import (
    COUNTED,
    gradient_footprint,
    measured_rate,
    nominal_rate,
    solver_operations,
)
from wsb_engine.curvature.folds import FOLDS
from wsb_engine.curvature.products.autodiff import (
    COLUMNS,
    GRADIENT_SAMPLES,
    PRODUCT_SAMPLES,
    AutodiffProduct,
    HessianProduct,
)
from wsb_engine.curvature.products.linearized import LinearizedProduct
from wsb_engine.curvature.products.stepping import SteppingProduct
from wsb_engine.errors import EngineError
from wsb_engine.model import Classifier
from wsb_engine.options import Options
from wsb_engine.spectrum.density import STARTS, STEPS
from wsb_engine.spectrum.lanczos import BLOCK_BYTES, ROWS
from wsb_engine.spectrum.probes import DEFLATED, probe_count
from wsb_engine.spectrum.run import HOMOGENEITY_STEPS

FEW = 3
"""Samples on which an analysis is counted; more if they depend on each other."""
CERTAIN_PRODUCTS = 12
"""Typical number of products of an enclosure that rests on exact moments."""
PROVING = 10
"""Products that the proof of rounding errors costs as much as."""
CONFIRMING = 4
"""Fresh products with the outer Ritz vectors, and those that measure symmetry."""
THREE = 3
"""Vectors that a run without a basis keeps."""
OUTER = 2
"""Ritz vectors that an enclosure is confirmed with."""
DOUBLE = 8
"""Bytes of a number in float64."""
TERMS = 2
"""Terms of a parameter's derivative that are held at once, before they are added."""
FREED = 4
"""Vectors in float64 that an allocator keeps, in pieces, once they are freed."""
KEPT = 0.7
"""Share of a gradient's intermediates that its linearisation keeps."""
GPU_START_SECONDS = 0.7
"""Seconds that a GPU takes for its first kernels and libraries."""
SMALL_MODEL = 2_000_000
"""Number of parameters beyond which a GPU is sooner done whatever the batch."""
LIBRARIES, TRACING = 32 << 20, 48 << 20
"""Bytes that libraries take for themselves, and what linearising a gradient loads and compiles."""


def estimate(
    classifier: Classifier, batch: Batch, options: Options | None = None, *, needs: Collection[str] = ()
) -> Estimate:
    """Count operations and memory of ``analyze`` with the same arguments, and convert them to seconds.

    Runs a few samples and measures the rate of the device. What an analysis takes also depends on the spectrum, on
    which the number of products depends; a typical number is assumed.

    Args:
        classifier: From ``load_model`` or ``from_module``.
        batch: N labelled samples.
        options: As for ``analyze``.
        needs: As for ``analyze``.

    Raises:
        ModelError, BatchError, OptionsError, ResourceError: as ``analyze`` for what these few samples show.

    Examples:
        >>> import wsb
        >>> estimate = wsb.estimate(wsb.load_model("model.onnx"), wsb.load_batch("batch.npz"))
        >>> estimate.dtype, max(estimate.phases, key=lambda phase: phase.operations).name
        ('float64', 'enclosure')
    """
    options = placed(classifier, batch, options or Options(), needs)
    return estimate_of(_counted(classifier, batch, options), options, needs, measured=True)


def placed(classifier: Classifier, batch: Batch, options: Options, needs: Collection[str] = ()) -> Options:
    """Settle the leading device: of several the first, and for ``auto`` the CPU if it is expected to be done sooner.

    Args:
        classifier, batch, options, needs: As for ``analyze``.
    """
    if options.devices is not None:
        return options.model_copy(update={"device": devices.name(inputs.several(options)[0])})
    if options.device != "auto" or not devices.count():
        return options
    gpu = devices.current()
    on_gpu = options.model_copy(update={"device": devices.name(gpu)})
    on_cpu = options.model_copy(update={"device": "cpu"})
    if sum(tensor.numel() for tensor in classifier.parameters.values()) > SMALL_MODEL:
        return on_gpu
    try:
        here = estimate_of(_counted(classifier, batch, on_cpu), on_cpu, needs)
    except (EngineError, MemoryError, RuntimeError):
        return on_gpu  # the analysis itself says what is wrong, or it is wrong on this CPU alone
    there = here.operations / nominal_rate(gpu, torch.float64)
    return on_cpu if here.seconds <= GPU_START_SECONDS + there else on_gpu


def _counted(classifier: Classifier, batch: Batch, options: Options) -> Problem:
    """Pose the analysis of a few samples, with the counts of all of them."""
    few = _few_posed(classifier, batch, options, FEW)
    if few.objective.coupled and len(batch) > FEW:
        few = _few_posed(classifier, batch, options, 3 * COUNTED)
    weights = torch.tensor(1 / len(batch), dtype=torch.float64, device=few.objective.device).expand(len(batch))
    whole = replace(few.objective, targets=replace(few.objective.targets, weights=weights))
    footprint = gradient_footprint(whole) if whole.coupled else few.footprint
    whole = replace(whole, inputs=inputs.match_inputs(classifier.inputs, batch))
    return replace(few, objective=whole, footprint=footprint)


def _few_posed(classifier: Classifier, batch: Batch, options: Options, count: int) -> Problem:
    """Pose the analysis of the first rows that have a weight."""
    options = options.model_copy(update={"loss": wanted(batch, options)})
    rows = counting_rows(batch, options)[:count]
    rows = rows if len(rows) else np.arange(min(count, len(batch)))
    few = Batch({name: tensor[torch.from_numpy(rows)] for name, tensor in batch.x.items()}, batch.y[rows])
    quiet = options.model_copy(update={"time_limit": None})
    return pose(classifier, few, quiet, Monitor(quiet, None, 0.0), samples=len(batch))


def estimate_of(problem: Problem, options: Options, needs: Collection[str] = (), *, measured: bool = False) -> Estimate:
    """Estimate the analysis of a problem that is posed; runs nothing of it.

    Args:
        problem: The analysis.
        options: Its options.
        needs: As for ``analyze``.
        measured: True to measure the rate of the device, a tenth of a second once per process; False for the nominal
            one.
    """
    device, dtype = problem.objective.device, problem.objective.dtype
    rate = (measured_rate if measured else nominal_rate)(device, dtype)
    warned = Monitor(options, None, 0.0)
    choice = moments.choose(problem, options, needs, warned)
    products = _products(problem, options, choice)
    phases = [
        PhaseEstimate(name=name, operations=operations, bytes=held, seconds=operations / rate)
        for name, operations, held in _phases(problem, options, choice, products)
    ]
    left_out = [warning.message for warning in warned.warnings if warning.code == "moments_unavailable"]
    if options.population is not None and (refused := population.refused(problem)):
        left_out.append(refused[1])
    if choice.when == "if_cheap":
        left_out.append(moments.left_out(problem, options, choice, products))
    return Estimate(
        device=devices.name(device),
        dtype=str(dtype).removeprefix("torch."),
        products=products,
        rate=rate,
        operations=sum(phase.operations for phase in phases),
        bytes=max(phase.bytes for phase in phases),
        seconds=sum(phase.seconds for phase in phases),
        phases=phases,
        left_out=left_out,
    )


def _products(problem: Problem, options: Options, choice: moments.Choice) -> int:
    """Return the steps that the enclosure is expected to take."""
    if not options.enclosure:
        return 0
    certain = choice.layout is not None and choice.when == "first"
    expected = CERTAIN_PRODUCTS if certain else inputs.EXPECTED_PRODUCTS
    return min(expected, options.max_products, problem.objective.parameters)


def _phases(
    problem: Problem, options: Options, choice: moments.Choice, products: int
) -> Iterator[tuple[str, float, int]]:
    """Yield name, operations and bytes of each phase."""
    P, N, each = problem.objective.parameters, problem.samples, problem.footprint.operations
    memory = _Memory(problem)
    product = problem.hessian_product(columns=1)
    way = product.way if isinstance(product, SteppingProduct) else product
    one = problem.product_operations
    is_single = problem.objective.dtype == torch.float32
    is_proven = choice.layout is not None and not is_single
    # A forward pass is a third of a gradient; the logits are computed once, and again to see if samples are coupled.
    yield "setup", 2 * N * each / 3, memory.setup()
    yield "loss", N * each, memory.gradient()
    if options.enclosure or choice.method is not None:
        compared = DIFFERENCES if is_single else PERTURBATIONS
        rounding = PROVING * one if is_proven else (2 * compared + MOVED * (not is_single)) * one
        yield "rounding", rounding, memory.rounding(way, 0 if is_proven else compared)
    if choice.method is not None:
        yield "moments", *_moments(problem, options, choice, one, memory)
    if options.enclosure:
        confirming = CONFIRMING + (0 if is_proven or is_single else (PERTURBATIONS + MOVED) * OUTER)
        is_repeated = without_basis(product, options, problem.memory)
        repeated, kept = 0, memory.basis(products)
        if is_repeated:
            spared = min(products, spare(product, options, problem.memory))
            repeated, kept = products - spared, THREE + spared
        enclosing = products + repeated + len(HOMOGENEITY_STEPS) + confirming
        held = memory.enclosure(way, kept, is_measured=not (is_proven or is_single), is_kept=not is_repeated)
        yield "enclosure", enclosing * one, held
        if options.population is not None and not population.refused(problem):
            held = memory.enclosure(way, kept + memory.basis(population.EXPECTED_PRODUCTS), is_measured=False)
            yield "population", (FOLDS * population.EXPECTED_PRODUCTS + population.FORM_PRODUCTS) * one, held
    spectrum, held = 0.0, memory.resident
    if options.spectrum == "dense":
        spectrum, held = P * one + solver_operations(P, problem.objective.device), memory.resident + 3 * DOUBLE * P * P
    elif options.spectrum == "top":
        more = min(options.max_products, P)
        spectrum, held = (
            more * one,
            memory.enclosure(way, memory.basis(more), is_measured=False) + options.top * DOUBLE * P,
        )
    if options.density:
        steps = min(STEPS, P, options.max_products)
        spectrum += STARTS * steps * one
        held = max(held, memory.enclosure(way, memory.basis(products + steps), is_measured=False))
    if spectrum:
        yield "spectrum", spectrum, held
    for name in _questions(options):
        expected = min(inputs.EXPECTED_PRODUCTS, options.max_products, P)
        compared = DIFFERENCES if is_single else PERTURBATIONS
        bounding = 2 * compared + MOVED * (not is_single)
        if problem.structure is not None and not is_single:
            bounding = PROVING
        repeated = without_basis(product, options, problem.memory)
        operations = ((1 + repeated) * expected + len(HOMOGENEITY_STEPS) + CONFIRMING + bounding) * one
        kept = THREE if repeated else memory.basis(expected)
        is_measured = problem.structure is None and not is_single
        yield name, operations, memory.enclosure(way, kept, is_measured=is_measured, is_kept=not repeated)
    for name, count in costs.products(problem, options, is_measured=not (is_proven or is_single)).items():
        further = costs.further_operations(problem, name)
        yield (
            name,
            count * one + further,
            memory.enclosure(way, memory.basis(inputs.EXPECTED_PRODUCTS), is_measured=True),
        )


def _questions(options: Options) -> Iterator[str]:
    """Yield the phases that enclose another matrix than H."""
    if options.scaling != "none":
        yield "scaled"
    scales = options.optimizer is not None and options.optimizer.needs_state
    # The enclosure answers for steps that are not scaled.
    if scales or (options.optimizer is not None and not options.enclosure):
        yield "optimizer"


def _moments(
    problem: Problem, options: Options, choice: moments.Choice, one: float, memory: _Memory
) -> tuple[float, int]:
    """Return operations and bytes of the moments, tr G included."""
    gauss_newton = problem.samples * problem.footprint.operations * problem.logits.classes * 2 / 3
    if choice.layout is not None:
        return choice.layout.cost + gauss_newton, memory.closed_form(choice.layout)
    P = problem.objective.parameters
    block = problem.hessian_product()
    way = block.way if isinstance(block, SteppingProduct) else block
    if choice.method == "probes":
        count = DEFLATED + probe_count(moments.probe_share(problem, options, choice))
        return count * one + gauss_newton, memory.enclosure(way, memory.basis(DEFLATED), is_measured=False)
    return P * one + gauss_newton, memory.product(way, min(COLUMNS, P))


class _Memory:
    """Bytes that the stages of an analysis hold, the model and the batch included.

    Args:
        problem: The analysis.
    """

    def __init__(self, problem: Problem) -> None:
        objective, self._problem = problem.objective, problem
        self._P, self._item = objective.parameters, objective.dtype.itemsize
        stored = problem.model.parameters.values()
        model = sum(tensor.numel() * tensor.itemsize for tensor in stored)
        self._copy = sum(tensor.numel() for tensor in stored)
        """Numbers of all parameters, whether selected or not."""
        is_cast = any(tensor.dtype != objective.dtype for tensor in stored)
        is_laid_out = objective.memory_format != torch.preserve_format
        copies = (is_cast + is_laid_out) * self._copy * self._item
        batch = sum(tensor.numel() * tensor.itemsize for tensor in objective.inputs.values())
        logits = kept_bytes(problem.samples, problem.logits.classes, problem.memory)
        labels = 2 * DOUBLE * problem.samples * objective.targets.y.shape[1:].numel()
        self.resident = model + copies + batch + logits + labels + LIBRARIES
        """What every stage holds."""

    def setup(self) -> int:
        """Logits in float64, with shifted and jittered parameters to see if samples are coupled."""
        chunk = self._chunk(GRADIENT_SAMPLES) * self._problem.footprint.bytes * DOUBLE // self._item
        return self.resident + 3 * DOUBLE * self._copy + chunk

    def gradient(self) -> int:
        """The sum, and as much again for the parts of a chunk."""
        sums = (DOUBLE + self._item) * self._P
        return self.resident + sums + self._chunk(GRADIENT_SAMPLES) * self._problem.footprint.bytes

    def product(self, way: HessianProduct, columns: int) -> int:
        """Intermediates of a chunk and their derivatives, or of all samples; direction, sum, gradient, derivative."""
        bytes_, vectors = self._problem.footprint.bytes, (DOUBLE + 3 * self._item) * self._P * columns
        if isinstance(way, LinearizedProduct):
            kept = int(KEPT * bytes_ * self._problem.samples)
            return self.resident + TRACING + vectors + kept + bytes_ * self._chunk(way.samples)
        return self.resident + vectors + self._from_scratch(way, columns)

    def rounding(self, way: HessianProduct, compared: int) -> int:
        """A product beside a known image, with one perturbed model or one in float64 at a time."""
        problem = self._problem
        if self._item == DOUBLE:
            return self._perturbed(way) if compared else self.product(way, 1)
        columns = 1
        if problem.structure is not None:
            columns = max(1, min(compared, vectors(problem.objective, problem.memory)))
        differences = (DOUBLE + self._item) * columns * self._P + DOUBLE * self._copy
        return max(self._in_double(way, columns), self.product(way, 1) + differences)

    def basis(self, products: int) -> int:
        """Return the vectors that a basis takes, in blocks of rows."""
        rows = max(1, min(ROWS, BLOCK_BYTES // (self._item * self._P)))
        return rows * math.ceil(products / rows)

    def enclosure(self, way: HessianProduct, vectors: int, *, is_measured: bool, is_kept: bool = True) -> int:
        """The vectors of the run, and what confirms the outer Ritz vectors.

        Args:
            way: The product.
            vectors: Vectors that the run keeps.
            is_measured: True if rounding is measured on the Ritz vectors.
            is_kept: True if vectors are kept until then.
        """
        product, image, vector = self.product(way, 1), DOUBLE * self._P, self._item * self._P
        confirming = self._perturbed(way) if is_measured else product + image
        if self._item < DOUBLE:
            confirming = max(confirming, self._in_double(way, 1))
        if is_kept:
            held = confirming + OUTER * image + vectors * vector
        else:
            held = max(confirming + OUTER * vector, product + image + (vectors + OUTER) * vector)
        return held + FREED * image

    def closed_form(self, layout: Layout) -> int:
        structure = self._problem.structure
        return self.resident + (0 if structure is None else held_bytes(structure.net, layout, self._problem.samples))

    def _in_double(self, way: HessianProduct, columns: int) -> int:
        """A product in float64 of the model in float64, beside what the product keeps of the model."""
        intermediates = self._from_scratch(way, columns) * DOUBLE // self._item
        kept = 0 if isinstance(way, AutodiffProduct) else self.product(way, 1) - self.resident
        return self.resident + kept + DOUBLE * self._copy + intermediates + 4 * DOUBLE * columns * self._P

    def _perturbed(self, way: HessianProduct) -> int:
        """A product of a perturbed model, beside that of the model, whose image is known."""
        beside = self._from_scratch(way, 1) if isinstance(way, LinearizedProduct) else 0
        return self.product(way, 1) + beside + DOUBLE * (self._copy + self._P)

    def _from_scratch(self, way: HessianProduct, columns: int) -> int:
        """Intermediates of a chunk, their derivatives along each column, and the terms of the largest parameter's."""
        chunk = way.samples if isinstance(way, AutodiffProduct) else GRADIENT_SAMPLES
        chunk = min(chunk, PRODUCT_SAMPLES) if columns > 1 else chunk
        # Reverse mode frees them as it goes.
        together = 1 if isinstance(way, AutodiffProduct) and way.reverse and columns == 1 else 1 + columns
        largest = max(tensor.numel() for tensor in self._problem.objective.selected.values())
        return self._problem.footprint.bytes * self._chunk(chunk) * together + TERMS * columns * self._item * largest

    def _chunk(self, most: int) -> int:
        objective = self._problem.objective
        return self._problem.samples if objective.coupled else min(self._problem.samples, most, objective.fits)
