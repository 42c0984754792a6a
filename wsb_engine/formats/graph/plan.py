"""Plans: a function's kernel calls in order, made once for given shapes, then run as plain torch calls.

Planning runs every operator on meta tensors, which have shapes but no memory: sizes are checked before anything is
allocated, and what depends on constants alone is folded. What remains is a list of kernel calls with no Python
decision on values, which is what ``torch.func`` needs. Both readers plan with ``Planner``; they differ in how they
find the operators: an ONNX graph is a list of nodes, TorchScript has branches, loops and containers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from wsb_engine.curvature.tracing.dispatch import Running
from wsb_engine.errors import ModelError, first_line
from wsb_engine.formats.graph import problems
from wsb_engine.formats.graph.limits import LIMITS
from wsb_engine.formats.graph.shadows import Shadows
from wsb_engine.memory import ran_out
from wsb_engine.model import Tensors

META, CPU = torch.device("meta"), torch.device("cpu")
_PLANS = 16
"""Plans that a program keeps; an analysis uses a few batch sizes and a ragged last chunk."""
_KERNEL_FAILURES = (RuntimeError, ValueError, IndexError, TypeError, ArithmeticError, AttributeError)
NESTING = 64
"""Containers within containers."""
ITEMS = 1 << 20
"""Items of a container and all within it."""

Kernel = Callable[..., Any]
Shapes = Mapping[str, tuple[int, ...]]
Specs = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
"""Shape and dtype of parameters and inputs, by the name of their value."""


class Site(Protocol):
    """A place in a model's file where an operator is applied."""

    @property
    def label(self) -> str:
        """How messages name it."""

    @property
    def details(self) -> dict[str, Any]:
        """What an error says about it to programs."""

    @property
    def public_name(self) -> str | None:
        """The operator's name in a report; None for what users do not know by name."""


S = TypeVar("S", bound=Site)


@dataclass(frozen=True, kw_only=True)
class Call(Generic[S]):
    """What a kernel knows besides its arguments."""

    plain: ClassVar[str] = problems.PLAIN
    """Advice if a use of an operator is not supported."""
    node: S
    working: torch.dtype
    """The floating type that everything is computed in."""
    device: torch.device
    """Where a kernel makes new tensors; the meta device while shapes are planned."""

    def run(self, kernel: Kernel, arguments: Sequence[Any]) -> Any:
        """Apply a kernel.

        Raises:
            ModelError: ``evaluation_failed`` if the arguments do not fit. Running out of memory stays the error that
                it is.
        """
        try:
            return kernel(self, *arguments)
        except _KERNEL_FAILURES as error:
            if ran_out(error):
                raise
            shapes = [
                list(each.shape) for each in flattened(tuple(arguments)) if isinstance(each, (Tensor, np.ndarray))
            ]
            raise problems.evaluation_failed(
                self.node.label,
                f"can't be applied to shapes {shapes}: {first_line(error)}",
                shapes=shapes,
                **self.node.details,
            ) from error

    def unsupported(self, why: str) -> ModelError:
        """Return an error about a use of this operator that the reader does not support."""
        return problems.unsupported(self.node.label, f"{why} is not supported", advice=self.plain, **self.node.details)

    def require_size(self, elements: int, limit: int) -> None:
        """Raise ``tensor_too_large`` past a limit."""
        if elements > limit:
            raise problems.too_large(self.node.label, elements, limit, **self.node.details)


def without_call(function: Kernel) -> Kernel:
    """Make a kernel of a function that needs its arguments only."""
    return lambda call, *arguments: function(*arguments)


class Name(str):
    """Stands for a value that an earlier step makes; other strings are themselves."""

    __slots__ = ()


@dataclass(frozen=True)
class Step:
    """One kernel call."""

    call: Call[Any]
    kernel: Kernel
    arguments: tuple[Any, ...]
    """Python values, with a ``Name`` for each value made before."""
    outputs: tuple[str, ...]
    """Names of the tensors made, lists of tensors laid out one after another."""
    finished: tuple[str, ...] = ()
    """Values that no later step needs."""

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(found for found in flattened(self.arguments) if isinstance(found, Name)))


@dataclass(frozen=True)
class Plan:
    """What a program does for inputs of given shapes."""

    steps: tuple[Step, ...]
    results: tuple[str | Tensor, ...]
    """Name of each result, or the result itself if it depends on neither parameters nor inputs."""
    shapes: Shapes
    """Shapes of the values, by name."""
    mode: Callable[[], AbstractContextManager[object]] = nullcontext
    """Makes the context in which the steps run."""

    def run(self, values: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Run the steps on parameters and inputs by name; ``values`` is used up."""

        def element(item: Any) -> Any:
            return values[item] if isinstance(item, Name) else item

        with self.mode():
            for step in self.steps:
                with Running(step.call.node.public_name):
                    made = step.call.run(step.kernel, replaced(step.arguments, element))
                values.update(zip(step.outputs, tensors_of(made), strict=False))
                for name in step.finished:
                    values.pop(name, None)
        return tuple(values[each] if isinstance(each, str) else each for each in self.results)


def needed(steps: Sequence[Step], results: Iterable[str | Tensor]) -> tuple[Step, ...]:
    """Return the steps that results need, in order, each with the values that can be freed after it."""
    wanted = {each for each in results if isinstance(each, str)}
    kept = []
    for step in reversed(steps):
        if wanted.intersection(step.outputs):
            names = {*step.reads, *step.outputs}
            kept.append(replace(step, finished=tuple(names - wanted)))
            wanted |= names
    return tuple(reversed(kept))


@dataclass(eq=False)
class Value:
    """A tensor while a program is planned."""

    name: str
    shadow: Tensor | None
    """A meta tensor; None if the shape, or even the kind, is not known."""
    known: Tensor | None = None
    """Its elements, on the CPU, if it depends on neither parameters nor inputs."""


@dataclass(kw_only=True)
class Planner:
    """Evaluates operators on shapes and constants, and writes down the kernel calls that are left."""

    working: torch.dtype = torch.float64
    """The floating type that everything is computed in."""
    device: torch.device = CPU
    """Device on which the steps will run."""
    steps: list[Step] = field(default_factory=list)
    _folded: int = 0

    def evaluate(self, call: Call[Any], kernel: Kernel, arguments: Any, *, concrete: bool = False) -> tuple[Any, bool]:
        """Apply an operator to values.

        Args:
            call: The operator's application.
            kernel: Its kernel.
            arguments: Python values, with a ``Value`` whose shape is known for each tensor.
            concrete: True if the shapes of the results depend on elements.

        Returns:
            What the kernel makes, and whether that has elements: True if all arguments do, else the tensors are meta.

        Raises:
            ModelError: ``evaluation_failed``, ``tensor_too_large``.
        """
        fixed = all(item.known is not None for item in flattened(arguments) if isinstance(item, Value))
        made: Any = ()
        if not concrete:
            made = self.run_kernel(call, kernel, arguments, META)
            for tensor in tensors_of(made):
                call.require_size(tensor.numel(), LIMITS.folded_elements if fixed else LIMITS.tensor_elements)
        if fixed:
            made = self.run_kernel(call, kernel, arguments, CPU)
            self._folded += sum(tensor.numel() for tensor in tensors_of(made))
            call.require_size(self._folded, 4 * LIMITS.folded_elements)
        return made, fixed

    def run_kernel(self, call: Call[Any], kernel: Kernel, arguments: Any, device: torch.device) -> Any:
        def element(item: Any) -> Any:
            if not isinstance(item, Value):
                return item
            return item.shadow if device == META else item.known

        with Shadows() if device == META else nullcontext():
            return replace(call, device=device).run(kernel, replaced(arguments, element))

    def emit(self, call: Call[Any], kernel: Kernel, arguments: Any, outputs: tuple[str, ...]) -> Step:
        """Write down a kernel call."""
        given = replaced(arguments, lambda item: self.operand(item) if isinstance(item, Value) else item)
        step = Step(call, kernel, given, outputs)
        self.steps.append(step)
        return step

    def operand(self, value: Value) -> Any:
        """What stands for a value among a step's arguments: its elements if they are known, else its name."""
        return Name(value.name) if value.known is None else value.known.to(self.device)


class Planned(ABC):
    """A pure function of parameters and inputs that is planned once for each set of shapes.

    Args:
        parameters: Names of the parameters that it depends on.
        inputs: Name of each input that it depends on → name of the input's value.
    """

    def __init__(self, parameters: tuple[str, ...], inputs: Mapping[str, str]) -> None:
        self.parameters = parameters
        self._given = inputs
        self._plans: OrderedDict[object, Plan] = OrderedDict()

    def __call__(
        self,
        parameters: Tensors,
        inputs: Tensors,
        *,
        declared: int | None = None,
        working: torch.dtype | None = None,
    ) -> tuple[Tensor, ...]:
        """Compute the values, in the dtype and on the device of the parameters (of the inputs if there are none).

        Args:
            parameters: Parameters by name; unused ones are ignored.
            inputs: Inputs by name; unused ones are ignored.
            declared: Number of samples that the file's Reshape targets are written for, if the inputs have another
                one; the targets are then rescaled.
            working: Dtype to compute in, to which each parameter is converted whenever it is used.

        Raises:
            ModelError: ``missing_input``, ``evaluation_failed`` (shapes that don't fit, with the node),
                ``tensor_too_large``, and what planning raises.
        """
        used = {name: parameters[name] for name in self.parameters}
        given = {value: _required(inputs, name) for name, value in self._given.items()}
        dtype, device = _setting([*used.values(), *given.values()])
        dtype = working or dtype
        given = {name: x.to(dtype) if x.is_floating_point() else x for name, x in given.items()}
        values = {**used, **given} if working is None else _Converting(dtype, {**used, **given})
        return self.plan(used, given, dtype, device, declared).run(values)

    def plan(
        self,
        parameters: Tensors,
        inputs: Tensors,
        working: torch.dtype,
        device: torch.device,
        declared: int | None = None,
    ) -> Plan:
        """Return the plan for these shapes; it is made once.

        Args:
            parameters: Parameters by name, of which only shapes and dtypes count.
            inputs: Inputs by the names of their values, of which only shapes and dtypes count.
            working: The floating type to compute in.
            device: Device on which the plan will run.
            declared: As for a call.
        """
        fixed, given = _specs(parameters, working), _specs(inputs)
        key = (working, device, declared, tuple(given.items()))
        if key not in self._plans:
            # In another thread: transforms and dispatch modes are per thread and must not see the meta tensors.
            with ThreadPoolExecutor(max_workers=1) as pool:
                self._plans[key] = pool.submit(self._make_plan, fixed, given, working, device, declared).result()
            if len(self._plans) > _PLANS:
                self._plans.popitem(last=False)
        self._plans.move_to_end(key)
        return self._plans[key]

    @abstractmethod
    def _make_plan(
        self, fixed: Specs, given: Specs, working: torch.dtype, device: torch.device, declared: int | None
    ) -> Plan:
        """Return the plan for parameters and inputs of these shapes."""


class _Converting(dict[str, Tensor]):
    """Tensors by name, each converted when it is looked up, so that no more than one is held in two dtypes."""

    def __init__(self, dtype: torch.dtype, stored: Mapping[str, Tensor]) -> None:
        super().__init__(stored)
        self._dtype = dtype

    def __getitem__(self, name: str) -> Tensor:
        tensor = super().__getitem__(name)
        return tensor.to(self._dtype) if tensor.is_floating_point() else tensor


def _specs(tensors: Tensors, working: torch.dtype | None = None) -> Specs:
    return {
        name: (tuple(x.shape), x.dtype if working is None or not x.is_floating_point() else working)
        for name, x in tensors.items()
    }


def _required(inputs: Tensors, name: str) -> Tensor:
    if name not in inputs:
        raise problems.missing_input(name)
    return inputs[name]


def _setting(tensors: list[Tensor]) -> tuple[torch.dtype, torch.device]:
    """Return the working dtype and device: those of the first floating tensor."""
    for tensor in tensors:
        if tensor.is_floating_point():
            return tensor.dtype, tensor.device
    return torch.float64, tensors[0].device if tensors else CPU


def tensors_of(made: Any) -> Sequence[Tensor]:
    """Return a kernel's result as a sequence."""
    return made if isinstance(made, (tuple, list)) else (made,)


def flattened(value: Any) -> Iterator[Any]:
    """Return the items of nested lists, tuples and dictionaries.

    Raises:
        ModelError: ``model_too_complex`` for absurdly many, or absurdly deep ones.
    """
    pending = [iter((value,))]
    count = 0
    while pending:
        for item in pending[-1]:
            if isinstance(item, (list, tuple, dict)):
                pending.append(iter(item.values() if isinstance(item, dict) else item))
                problems.limit("levels of nested containers", len(pending), NESTING)
                break
            count += 1
            if count > ITEMS:
                raise problems.too_complex("items in nested containers", count, ITEMS)
            yield item
        else:
            pending.pop()


def replaced(value: Any, change: Callable[[Any], Any]) -> Any:
    """Return the same nesting with each item changed."""
    if isinstance(value, list):
        return [replaced(item, change) for item in value]
    if isinstance(value, tuple):
        return tuple(replaced(item, change) for item in value)
    if isinstance(value, dict):
        return {key: replaced(item, change) for key, item in value.items()}
    return change(value)
