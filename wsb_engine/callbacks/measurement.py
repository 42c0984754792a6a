"""λ_max of a module while it is trained, on a fixed batch; the training goes on as if nothing had been measured."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from wsb_engine import devices
from wsb_engine.analysis.analyze import analyze
from wsb_engine.analysis.checks import failure
from wsb_engine.batch import Batch
from wsb_engine.callbacks.stability import Descent, NoRatioError, largest, of_torch
from wsb_engine.errors import BatchError, EngineError, ModelError
from wsb_engine.formats.module import from_module
from wsb_engine.internals import uncompiled
from wsb_engine.options import Options
from wsb_engine.report import CertifiedInterval, Report

PREFIX = "wsb/"
"""Begins the name of every metric."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What one measurement found."""

    step: int
    """Optimizer steps that the parameters have behind them."""
    report: Report
    stability_ratio: float | None
    """Upper end of λ_max over the largest λ_max at which gradient descent is stable; None if ``no_ratio`` says why."""
    parameter_group: int | None
    """Number of the group of parameters whose ratio this is: the largest of all groups."""
    no_ratio: str | None
    """Why there is no ratio; None if there is one, or no optimizer was given."""

    @property
    def lambda_max(self) -> CertifiedInterval | None:
        """The interval that contains λ_max; None if the options asked for nothing that bounds it."""
        closest = self.report.lambda_max
        return None if closest is None else closest.interval

    @property
    def metrics(self) -> dict[str, float]:
        """What callbacks log: the centre and both ends of λ_max's interval, the loss, and the stability ratio."""
        found = {"loss": self.report.loss.value}
        if (ends := self.lambda_max) is not None:
            centre = ends.lower + (ends.upper - ends.lower) / 2
            found |= {"lambda_max": centre, "lambda_max_lower": ends.lower, "lambda_max_upper": ends.upper}
        if self.stability_ratio is not None:
            found["stability_ratio"] = self.stability_ratio
        return {PREFIX + name: value for name, value in found.items()}


def measure(
    module: nn.Module,
    batch: Batch,
    options: Options | None = None,
    *,
    optimizer: Optimizer | Iterable[Optimizer] | None = None,
    step: int = 0,
) -> Measurement:
    """Analyse a module in training: ``analyze(from_module(module), batch, options)``, of what is trained.

    The module is copied, and the copy analysed in evaluation mode. Parameters, buffers, gradients, modes, random
    states and autocast are as before afterwards.

    Args:
        module: Maps the batch's inputs to logits or probabilities; it may return an object with ``logits``.
            ``DistributedDataParallel`` and ``torch.compile`` around it are taken off.
        batch: N labelled samples, the same each time.
        options: See ``Options``. Unless they select parameters, those without gradients are left out.
        optimizer: The optimizer of the training, or several, for the stability ratio.
        step: Number of the measurement.

    Raises:
        ModelError, BatchError, OptionsError, ResourceError: as ``analyze``; ``not_a_batch``, ``module_sharded``, and
            ``check_failed`` if a check of the report failed, so that its numbers mean nothing.

    Examples:
        >>> import torch
        >>> import wsb
        >>> module = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3))
        >>> batch = wsb.load_batch("batch.npz")
        >>> sgd = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
        >>> found = wsb.callbacks.measure(module, batch, optimizer=sgd)
        >>> abs(found.stability_ratio / (found.lambda_max.upper * 0.1 / (2 * 1.9)) - 1) < 1e-12
        True
        >>> sorted(found.metrics)
        ['wsb/lambda_max', 'wsb/lambda_max_lower', 'wsb/lambda_max_upper', 'wsb/loss', 'wsb/stability_ratio']
    """
    descents = None if optimizer is None else lambda: of_torch(optimizer, module)
    return measured(module, batch, options or Options(), step, descents)


def measured(
    module: nn.Module, batch: Batch, options: Options, step: int, descents: Callable[[], Sequence[Descent]] | None
) -> Measurement:
    """Measure as ``measure`` does, with the optimizer's groups as a function, which may raise ``NoRatioError``."""
    if not isinstance(batch, Batch):
        raise BatchError(
            f"the batch is a {type(batch).__name__}",
            code="not_a_batch",
            advice="Give wsb.Batch(x, y), or the first n rows of a loader: wsb.Batch.from_loader(loader, n).",
        )
    if isinstance(module, DistributedDataParallel):
        module = module.module
    module = uncompiled(module)
    _require_whole(module)
    with undisturbed():
        taken = _by_name(module, tuple(batch.x)) if _wants_names(module, batch) else module
        report = analyze(from_module(taken), batch, _trained(taken, options))
    if report.failed_checks:
        raise EngineError(
            failure(report.failed_checks[0]),
            code="check_failed",
            advice="The numbers of this report mean nothing; docs/limitations.md says what to do about each check.",
        )
    return _rated(report, step, descents)


def _rated(report: Report, step: int, descents: Callable[[], Sequence[Descent]] | None) -> Measurement:
    ratio, group, reason = None, None, None
    if descents is not None and report.lambda_max is not None:
        try:
            ratio, descent = largest(descents(), report.lambda_max.interval.upper)
            group = descent.group
            if not math.isfinite(ratio):
                ratio, group, reason = None, None, f"the learning rate is {descent.learning_rate}"
        except NoRatioError as error:
            reason = str(error)
    return Measurement(step=step, report=report, stability_ratio=ratio, parameter_group=group, no_ratio=reason)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Compute with gradients and without autocast inside the block, and restore the random states of torch after it."""
    gpus = list(range(devices.count()))
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=gpus, device_type=devices.ACCELERATOR))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in ("cpu", devices.ACCELERATOR) if gpus else ("cpu",):
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def _require_whole(module: nn.Module) -> None:
    """Refuse a module of which this process holds a part.

    Raises:
        ModelError: ``module_sharded``.
    """
    for name, parameter in module.named_parameters():
        if not parameter.numel() or hasattr(parameter, "placements"):
            raise ModelError(
                f"this process has only a shard of the parameter {name!r}",
                code="module_sharded",
                advice="Save a whole checkpoint and analyse that; callbacks measure modules that one process holds "
                "(DistributedDataParallel, but not FSDP or ZeRO 3).",
            )


def _trained(module: nn.Module, options: Options) -> Options:
    """Select the parameters that are trained, if some are frozen and the options select none."""
    named = list(module.named_parameters())
    trained = [name for name, parameter in named if parameter.requires_grad]
    if options.parameters != ("*",) or len(trained) in (0, len(named)):
        return options
    # More names than an option may have in a request, and none of them a glob.
    exact = tuple(name.translate({ord(each): f"[{each}]" for each in "*?["}) for name in trained)
    return options.model_copy(update={"parameters": exact})


def _wants_names(module: nn.Module, batch: Batch) -> bool:
    """Return whether to pass inputs by name: what the module requires does not say which inputs it takes."""
    taken = inspect.signature(module.forward).parameters.values()
    by_name = {each.name for each in taken if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)}
    if not any(each.kind is each.VAR_KEYWORD for each in taken) and not by_name.issuperset(batch.x):
        return False
    required = [each for each in taken if each.default is each.empty and each.kind is each.POSITIONAL_OR_KEYWORD]
    # Models of transformers, which have this attribute, return more than logits.
    return len(required) != len(batch.x) or hasattr(module, "main_input_name")


def _by_name(module: nn.Module, names: tuple[str, ...]) -> nn.Module:
    """Return the same module, but one that takes these inputs in order and returns logits alone."""

    def forward(self: Any, *inputs: Tensor) -> Any:
        found = kind.forward(self, **dict(zip(names, inputs, strict=True)))
        return getattr(found, "logits", found)

    kind: Any = type(module)
    parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in ("self", *names)]
    forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    renamed = copy.copy(module)
    renamed.__class__ = type(kind.__name__, (kind,), {"forward": forward})
    return renamed
