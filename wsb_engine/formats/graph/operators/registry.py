"""Declares and finds kernels.

A kernel is a pure torch function: it takes a ``Call`` and the node's inputs and returns the node's output, or a
tuple of them. It must work on meta tensors (shapes are planned before memory is taken), under ``torch.func``
transforms (no writing in place, no Python control flow on values) and be as differentiable as its formula.
Inputs that shape the computation (axes, target shapes) are declared static: the kernel gets them as numpy arrays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from wsb_engine.curvature.tracing import operators as traits
from wsb_engine.errors import ModelError
from wsb_engine.formats.graph import plan, problems
from wsb_engine.formats.graph.graph import Node

Static = np.ndarray[Any, np.dtype[Any]]
Kernel = plan.Kernel
T = TypeVar("T")
_Attributed = TypeVar("_Attributed", int, float, str, tuple[int, ...], tuple[float, ...], Tensor)

ML = "ai.onnx.ml"
_STANDARD = (
    "Export the classifier in inference mode with the standard operators of ONNX, without pre- and post-processing."
)
_TREES = (
    "Decision trees are piecewise constant: their loss has no gradient and no Hessian. Analyse a linear model or a "
    "network in their place."
)
_KERNELS = (
    "A kernel machine compares samples with those of its training and has no weights by which to differentiate. "
    "Analyse a linear model (LinearSVC, LogisticRegression) or a network in its place."
)
_ADVICE = {
    (ML, "TreeEnsemble"): _TREES,
    (ML, "TreeEnsembleClassifier"): _TREES,
    (ML, "TreeEnsembleRegressor"): _TREES,
    (ML, "SVMClassifier"): _KERNELS,
    (ML, "SVMRegressor"): _KERNELS,
}
"""Advice for operators that no export avoids."""


@dataclass(frozen=True, kw_only=True)
class Call(plan.Call[Node]):
    """What a kernel knows besides its inputs."""

    @property
    def version(self) -> int:
        return self.node.version

    def get(self, name: str, default: _Attributed) -> _Attributed:
        """Return an attribute, which must be of the default's type."""
        value = self.node.attributes.get(name, default)
        if type(value) is not type(default) and not (isinstance(value, Tensor) and isinstance(default, Tensor)):
            raise self.wrong(f"attribute {name!r} has the wrong type")
        return value

    def ints(self, name: str) -> tuple[int, ...] | None:
        """Return an optional attribute that is a list of integers."""
        value: tuple[int, ...] = self.get(name, ())
        return value if name in self.node.attributes else None

    def wrong(self, why: str) -> ModelError:
        """Return an error about this node that breaks the format's rules."""
        return problems.invalid(f"{self.node.label}: {why}", **self.node.details)


@dataclass(frozen=True, kw_only=True)
class Operator:
    """An entry of the operator table."""

    since: int
    kernel: Kernel
    static: frozenset[int]
    """Positions of the inputs that must be known before the kernel runs."""
    concrete: bool
    """True if the output's shape depends on values: such a node can only be folded."""


_TABLE: dict[tuple[str, str], list[Operator]] = {}


def operator(
    *names: str,
    domain: str = "",
    since: int = 1,
    static: tuple[int, ...] = (),
    concrete: bool = False,
    activation: bool = False,
    elementwise: bool = False,
) -> Callable[[T], T]:
    """Enter a kernel in the table under one or more operator names.

    Args:
        names: Operator names.
        domain: Their domain.
        since: First opset version that the kernel is right for.
        static: Positions of the inputs that must be known before the kernel runs.
        concrete: True if the output's shape depends on values.
        activation: True if a report names the operator as a nonlinearity.
        elementwise: True if the activation of an MLP may be written with the operator.
    """
    if domain == "":
        traits.enter(*names, activation=activation, elementwise=elementwise)

    def enter(kernel: T) -> T:
        # The type checker does not know that T is a kernel's.
        entry = Operator(since=since, kernel=kernel, static=frozenset(static), concrete=concrete)  # type: ignore[arg-type]
        for name in names:
            versions = _TABLE.setdefault((domain, name), [])
            versions.append(entry)
            versions.sort(key=lambda each: each.since)
        return kernel

    return enter


def find(node: Node) -> Operator | None:
    """Return the table's entry for a node, or None."""
    entries = _TABLE.get((node.domain, node.operator), [])
    usable = [entry for entry in entries if entry.since <= node.version]
    return usable[-1] if usable else None


def supported() -> tuple[tuple[str, str], ...]:
    """(domain, operator) of every entry, sorted."""
    return tuple(sorted(_TABLE))


def require(node: Node) -> Operator:
    """Return the table's entry for a node.

    Raises:
        ModelError: ``unsupported_operator``, naming the node.
    """
    entry = find(node)
    if entry is None:
        domain = node.domain or "ai.onnx"
        raise problems.unsupported(
            node.label,
            f"operator {node.operator} (domain {domain}, opset {node.version}) is not supported",
            advice=_ADVICE.get((node.domain, node.operator), _STANDARD),
            **node.details,
        )
    return entry
