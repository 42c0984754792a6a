"""One analysis shared by the processes of a torch.distributed group, as ``torchrun`` starts them.

Every process reads the same files and poses the same problem. Then the first one computes the report, and the others
answer its tasks until it is done: they decide nothing, so their decisions can't differ.

Import this before creating the group, and destroy the group at the end: otherwise its threads may abort the process at
exit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist

# Tracing imports it, and its default arguments then keep a group that already exists, whose threads outlive it.
import torch.distributed.nn.functional
from torch import Tensor

from wsb_engine import devices
from wsb_engine.analysis.analyze import report_on
from wsb_engine.analysis.members import Member
from wsb_engine.analysis.monitor import Monitor, deciding
from wsb_engine.analysis.problem import Problem, pose
from wsb_engine.analysis.questions.optimizer import steps_of
from wsb_engine.arithmetic import exact
from wsb_engine.batch import Batch
from wsb_engine.curvature.team import Multiply, Task, Team
from wsb_engine.errors import EngineError, OptionsError, ResourceError
from wsb_engine.model import Classifier
from wsb_engine.optimizer_state import StateSource
from wsb_engine.options import Options
from wsb_engine.progress import Decided, ProgressCallback
from wsb_engine.report import Report, ReportWarning
from wsb_engine.version import __version__


def analyze(
    classifier: Classifier,
    batch: Batch,
    options: Options | None = None,
    *,
    progress: ProgressCallback | None = None,
    decided: Decided | None = None,
    optimizer_state: StateSource | None = None,
    group: dist.ProcessGroup | None = None,
) -> Report:
    """Run ``wsb_engine.analyze`` with its work split over a group; every process calls this with the same arguments.

    Args:
        classifier: From ``load_model`` or ``from_module``; the same in every process.
        batch: All N labelled samples, in every process.
        options: The same in every process; ``auto`` and ``cuda`` use the process's current GPU, if there is one. Each
            process has one device, so ``devices`` is refused.
        progress: Called only in the first process; raising in it stops the analysis in all processes.
        decided: As in ``wsb_engine.analyze``; called only in the first process.
        optimizer_state: As in ``wsb_engine.analyze``; read only in the first process.
        group: The processes; by default, all. Its timeout must cover the longest stage that the first one runs alone.

    Returns:
        The report of the first process, in every process.

    Raises:
        ModelError, BatchError, OptionsError, ResourceError: in every process, whichever failed; ``process_failed`` or
            ``process_lost`` if another process failed in some other way; ``devices_in_group`` for ``devices``.
    """
    options = _current(options or Options())
    callback, seconds = None if dist.get_rank(group) else progress, classifier.load_seconds + batch.load_seconds
    monitor = Monitor(options, callback, seconds, deciding(options, decided))
    with exact(gpus=options.device != "cpu" and devices.count() > 0) as monitor.not_deterministic:
        return _analyze(classifier, batch, options, monitor, group, optimizer_state)


def _analyze(
    classifier: Classifier,
    batch: Batch,
    options: Options,
    monitor: Monitor,
    group: dist.ProcessGroup | None,
    optimizer_state: StateSource | None,
) -> Report:
    processes = Processes(group, monitor)
    with processes.together(), monitor.phase("setup"):
        _require_one_device(options)
        problem = pose(classifier, batch, options, monitor)
        processes.member = Member(problem, processes.rank, processes.size, problem.objective.device)
        facts = _facts(problem)
    processes.agree_on(facts)
    if processes.rank:
        return processes.follow(problem.objective.dtype)
    with processes.led():
        monitor.warn("split", f"products and pairs of samples were split over {processes.size} processes")
        shared = problem if problem.objective.coupled else replace(problem, team=processes)
        steps = steps_of(shared, options, optimizer_state)
        report = report_on(shared, classifier, batch, options, monitor, steps=steps)
    processes.end(report)
    return report


def _require_one_device(options: Options) -> None:
    """Refuse several devices in one process of a group.

    Raises:
        OptionsError: ``devices_in_group``.
    """
    if options.devices is not None:
        raise OptionsError(
            "each process of a group computes on one device, so the option devices does not apply",
            code="devices_in_group",
            advice="Leave devices out, and start a process for each GPU: it uses the one that torch.cuda.set_device "
            "selects.",
        )


def _current(options: Options) -> Options:
    """Return the options with this process's current GPU if they leave the device open."""
    if options.device not in ("auto", "cuda") or not devices.count():
        return options
    return options.model_copy(update={"device": f"cuda:{devices.current().index}"})


def _facts(problem: Problem) -> dict[str, Any]:
    """Return what must be the same in every process."""
    digest = hashlib.sha256()
    objective = problem.objective
    numbers = (*objective.selected.values(), *objective.fixed.values(), *objective.inputs.values())
    for tensor in (*numbers, objective.targets.y, objective.targets.weights):
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return {
        "version": __version__,
        "dtype": str(objective.dtype),
        "parameters": [(name, tuple(tensor.shape)) for name, tensor in objective.selected.items()],
        "closed form": problem.structure is not None,
        "loss": repr(objective.loss),
        "numbers": digest.hexdigest(),
    }


_Message = tuple[Task | Report | EngineError, tuple[int, ...] | None]
"""A task with the shape of the tensor that follows it, or the outcome that ends all processes."""


@dataclass(frozen=True)
class _Word:
    """What a process sends to all others after each task."""

    error: EngineError | None
    warnings: Sequence[ReportWarning]


class Processes(Team):
    """The group as seen by one process.

    Args:
        group: The processes.
        monitor: Receives the other processes' warnings.
    """

    member: Member
    """This process's member."""

    def __init__(self, group: dist.ProcessGroup | None, monitor: Monitor) -> None:
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self._group, self._monitor = group, monitor
        self._over = False
        """True if the other processes have stopped or have been told to."""

    @property
    def _wire(self) -> torch.device:
        """The device that tensors are sent from: their own, if the group can send from it."""
        reachable = "nccl" in dist.get_backend_config(self._group)
        return self.member.device if reachable else torch.device("cpu")

    def answers(self, task: Task, tensor: Tensor | None = None) -> list[Tensor]:
        """Run the first process's part of a task, and collect the other parts."""
        answer = self._begun(task, tensor)
        answers = [torch.empty_like(answer) for _ in range(self.size)]
        with self._talking():
            dist.gather(answer, answers, group_dst=0, group=self._group)
        return [answer.to(self.member.device) for answer in answers]

    def sum(self, task: Task, tensor: Tensor | None = None) -> Tensor:
        """Run the first process's part of a task, and add the other parts on the way."""
        total = self._begun(task, tensor)
        with self._talking():
            dist.reduce(total, group_dst=0, group=self._group)
        return total.to(self.member.device)

    def _begun(self, task: Task, tensor: Tensor | None) -> Tensor:
        """Send a task to the other processes and run the first one's part."""
        self._send((task, None if tensor is None else tuple(tensor.shape)))
        if tensor is not None:
            with self._talking():
                dist.broadcast(tensor.to(self._wire).contiguous(), group_src=0, group=self._group)
        with self.together():
            own = self.member.answer(task, tensor)
        return own.to(self._wire).contiguous()

    def follow(self, dtype: torch.dtype) -> Report:
        """Answer tasks until the first process is done; for every other process."""
        while True:
            task, shape = self._received()
            if isinstance(task, EngineError):
                raise task
            if isinstance(task, Report):
                return task
            tensor = None
            if shape is not None:
                tensor = torch.empty(shape, dtype=dtype, device=self._wire)
                with self._talking():
                    dist.broadcast(tensor, group_src=0, group=self._group)
            with self.together():
                own = self.member.answer(task, tensor)
            answer = own.to(self._wire).contiguous()
            with self._talking():
                if isinstance(task, Multiply):
                    dist.reduce(answer, group_dst=0, group=self._group)
                else:
                    dist.gather(answer, None, group_dst=0, group=self._group)

    @contextmanager
    def together(self) -> Iterator[None]:
        """A step of every process, after which all continue or, if one failed, none does."""
        failure: BaseException | None = None
        try:
            yield
        except BaseException as error:
            failure = error
        words: list[_Word] = self._gathered(
            _Word(None if failure is None else self._portable(failure), self._monitor.warnings)
        )
        errors = [word.error for word in words if word.error is not None]
        self._over = self._over or bool(errors)
        if failure is not None:
            raise failure
        if errors:
            raise errors[0]
        if not self.rank:
            for warning in (warning for word in words for warning in word.warnings):
                self._monitor.warn(warning.code, warning.message)

    @contextmanager
    def led(self) -> Iterator[None]:
        """The first process's work: if it ends early, all other processes end."""
        try:
            yield
        except BaseException as error:
            with suppress(EngineError):
                self.end(self._portable(error))
            raise

    def end(self, outcome: Report | EngineError) -> None:
        """Send the outcome to the other processes, unless they have stopped."""
        if not self._over:
            self._send((outcome, None))
            self._over = True

    def agree_on(self, facts: dict[str, Any]) -> None:
        """Compare the arguments of all processes.

        Raises:
            OptionsError: ``processes_differ``.
        """
        everyone = self._gathered(facts)
        differing = [key for key in facts if any(other[key] != everyone[0][key] for other in everyone)]
        if differing:
            raise OptionsError(
                f"the processes do not have the same analysis: {', '.join(differing)} differ",
                code="processes_differ",
                advice="Load the same model and batch and give the same options in every process.",
            )

    def _send(self, message: _Message) -> None:
        with self._talking():
            dist.broadcast_object_list([message], group_src=0, group=self._group)

    def _received(self) -> _Message:
        box: list[Any] = [None]
        with self._talking():
            dist.broadcast_object_list(box, group_src=0, group=self._group)
        message: _Message = box[0]
        return message

    def _gathered(self, own: Any) -> list[Any]:
        words: list[Any] = [None] * self.size
        with self._talking():
            dist.all_gather_object(words, own, group=self._group)
        return words

    def _portable(self, error: BaseException) -> EngineError:
        if isinstance(error, EngineError):
            return error
        if devices.has_failed(error):
            return devices.failure(error)
        return ResourceError(
            f"process {self.rank} stopped with {type(error).__name__}: {error}",
            code="process_failed",
            advice="The traceback is in the output of that process.",
        )

    @contextmanager
    def _talking(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            self._over = True
            raise ResourceError(
                f"process {self.rank} lost the others: {error}",
                code="process_lost",
                advice="See the output of the process that ended first; if none did, give the group a longer timeout.",
            ) from error
