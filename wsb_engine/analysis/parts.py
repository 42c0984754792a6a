"""Parts of a report that follow directly from the problem and the closed form."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsb_engine import devices
from wsb_engine import report as r
from wsb_engine.analysis.agreement import norm
from wsb_engine.analysis.monitor import Monitor
from wsb_engine.analysis.problem import Problem
from wsb_engine.batch import Batch
from wsb_engine.bounds.rounding import Rounding
from wsb_engine.curvature.closed_form.sums import ClosedForm
from wsb_engine.errors import ModelError, finite
from wsb_engine.model import Classifier, Tensors
from wsb_engine.options import Options
from wsb_engine.version import __version__

PARITY_SAMPLES = 4096
"""Samples whose logits are compared with an independent runtime."""
SHORT_DTYPES = ("float16", "bfloat16")
"""Dtypes that models are stored in, and nothing is computed in."""
IMPLAUSIBLE = 10.0
"""Multiple of ln C, the loss of guessing, above which a loss is no classifier's that was trained on such inputs."""
TOP_SHARES = 10
"""Samples listed by their share of ‖H‖_F²."""


def batch(batch: Batch, problem: Problem) -> r.BatchSummary:
    """Summarise the batch."""
    loss, y = problem.objective.loss, problem.objective.targets.y
    return r.BatchSummary(
        sha256=batch.sha256,
        samples=len(batch),
        classes=loss.classes(problem.logits.classes),
        positions=y.shape[1] if loss.form == "positions" else None,
    )


def loss(problem: Problem) -> r.Loss:
    """Evaluate the loss, its gradient and the accuracy of the batch."""
    loss, logits, targets = problem.objective.loss, problem.logits, problem.objective.targets
    averages = loss.averages(logits.compared(problem.objective))
    value = finite(averages.loss, "the loss")
    guessing = loss.guess(logits.classes)
    if guessing is not None and value > IMPLAUSIBLE * guessing:
        problem.warn(
            "implausible_loss",
            f"the loss is {value / guessing:.3g} times that of guessing: are inputs scaled as in training, and labels "
            "in the order of the logits?",
        )
    return r.Loss(
        kind=loss.kind,
        value=value,
        gradient_norm=finite(norm(problem.objective.gradient()), "the gradient's norm"),
        accuracy=averages.accuracy,
        ignored=targets.ignored or None,
        ignore_index=targets.ignore_index,
        focal_gamma=getattr(loss, "focal_gamma", None),
        **{name: getattr(loss, name) or None for name in loss.settings - {"ignore_index", "focal_gamma"}},
    )


def parity(problem: Problem, classifier: Classifier, monitor: Monitor) -> r.Parity | None:
    """Compare the logits with those of the file's own runtime; None, and a warning, if that is impossible."""
    model = problem.model
    if model.reference is None or model.reference_name is None:
        if classifier.format != "module":
            monitor.warn("parity_none", "there is no other runtime to compare these logits with")
        return None
    if monitor.expired:
        monitor.warn("parity_unavailable", "the time limit has passed")
        return None
    objective = problem.objective
    rows = slice(0, problem.samples if objective.coupled else PARITY_SAMPLES)
    arrays = {name: _array(objective.rows(name, rows)) for name in objective.inputs}
    try:
        expected = model.reference(arrays)
    except ModelError as error:
        monitor.warn("parity_unavailable", f"{model.reference_name} can't evaluate this model: {error.message}")
        return None
    theirs = np.asarray(expected, dtype=np.float64)
    ours = torch.cat([z for _, z in problem.logits.chunks(objective, rows.stop)]).numpy()
    theirs = theirs.reshape(ours.shape)
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


def _array(tensor: Tensor) -> NDArray[Any]:
    """Return the same numbers for numpy, which has no bfloat16."""
    return np.asarray((tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy())


def engine(problem: Problem, options: Options) -> r.Engine:
    return r.Engine(
        version=__version__,
        torch=torch.__version__,
        device=devices.name(problem.objective.device),
        dtype="float64" if problem.objective.dtype == torch.float64 else "float32",
        seed=options.seed,
    )


def evidence(problem: Problem, options: Options, needs: Collection[str], rounding: Rounding) -> r.Evidence:
    """Describe what it takes to repeat the analysis, and its rounding."""
    device = problem.objective.device
    return r.Evidence(
        options=options.model_copy(update={"device": devices.name(device), "memory_limit": None}),
        needs=sorted(needs),
        machine=r.Machine(
            processor=devices.processor(device),
            threads=torch.get_num_threads(),
            memory=problem.memory,
            members=1 if problem.team is None else problem.team.size,
        ),
        rounding=r.RoundingTerms(
            how=rounding.how,
            operator=rounding.operator,
            product=rounding.product,
            failure_probability=rounding.failure_probability,
            relative_square_error=rounding.relative_square_error,
            square_error=rounding.square_error,
            trace_error=rounding.trace_error,
        ),
    )


def model(classifier: Classifier, problem: Problem, parity: r.Parity | None, monitor: Monitor) -> r.Model:
    """Describe the model, and warn if H is not that of the function as the file's own precision rounds it."""
    selected = problem.objective.selected
    stored: dict[str, int] = {}
    for name, tensor in selected.items():
        dtype = str(problem.model.parameters[name].dtype).removeprefix("torch.")
        stored[dtype] = stored.get(dtype, 0) + tensor.numel()
    short = dict.fromkeys([*(dtype for dtype in stored if dtype in SHORT_DTYPES), *problem.model.rounds_to])
    if short:
        monitor.warn(
            "widened_parameters",
            f"the model stores or computes numbers in {' and '.join(short)}: H is the Hessian of the widened function, "
            "with the stored values and no rounding to these types in between",
        )
    left_out = problem.model.left_out
    return r.Model(
        format=classifier.format,
        sha256=classifier.sha256,
        architecture="mlp" if problem.structure is not None else "general",
        parameters=r.Parameters(
            count=problem.objective.parameters,
            tensors=_described(selected),
            tied=[name for name in problem.model.tied if name in selected],
            stored_dtypes=stored,
            left_out=_described(left_out) if left_out or classifier.format == "onnx" else None,
        ),
        activations=list(problem.model.activations),
        smooth=not problem.nonsmooth,
        nonsmooth_operators=list(problem.nonsmooth),
        head=problem.model.head,
        parity=parity,
    )


def _described(tensors: Tensors) -> list[r.ParameterTensor]:
    return [
        r.ParameterTensor(name=name, shape=list(tensor.shape), count=tensor.numel()) for name, tensor in tensors.items()
    ]


def layers(problem: Problem, closed: ClosedForm | None, rounding: Rounding) -> list[r.LayerCurvature] | None:
    """Describe the curvature of each layer of an MLP; None without a closed form."""
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


def blocks(closed: ClosedForm | None) -> list[list[float]] | None:
    """Compute ‖H_lk‖_F for every pair of layers; None without a closed form, or for more layers than a report holds."""
    if closed is None or len(closed.block_squares) > r.MAX_BLOCKS:
        return None
    norms: list[list[float]] = closed.block_squares.clamp(min=0).sqrt().tolist()
    return norms


def orthogonality(closed: ClosedForm | None) -> r.Orthogonality | None:
    """Describe how much pairs of different samples add to q; None without a closed form."""
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
