"""Compares the parameters that were found in a file with those of the module that it was exported from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from wsb_engine.model import Classifier, Tensors

How = Literal[
    "equal",
    "transposed",
    "reshaped",
    "reordered",
    "rows of a table",
    "merged",
    "batch normalisation merged",
    "other values",
]
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_CLOSE = 1e-4
"""Relative; exporters merge in float32."""


@dataclass(frozen=True, kw_only=True)
class Match:
    """A parameter of the file, and what it is in the module."""

    file: str
    """Name in the file."""
    module: tuple[str, ...]
    """Names in the module; several if the exporter has merged them."""
    how: How
    """How the file stores it; ``other values`` if only name and shape agree."""


@dataclass(frozen=True, kw_only=True)
class ParameterComparison:
    """What a file and a module have in common, by value, and what only one of them has."""

    matches: tuple[Match, ...]
    """In the file's order."""
    only_in_file: Mapping[str, str]
    """Name of a parameter that the module lacks → its shape, and what it may be."""
    only_in_module: Mapping[str, str]
    """Name of a parameter that the file lacks → its shape, and what became of it, if that is known."""

    @property
    def is_complete(self) -> bool:
        """True if both have the same parameters, with the same values."""
        changed = any(match.how in ("batch normalisation merged", "other values") for match in self.matches)
        return not (changed or self.only_in_file or self.only_in_module)

    def __str__(self) -> str:
        lines = [f"{len(self.matches)} parameters of the file are parameters of the module."]
        lines += [
            f"  {match.file} is {' with '.join(match.module)}: {match.how}"
            for match in self.matches
            if match.how != "equal" or match.module != (match.file,)
        ]
        for title, names in (("file", self.only_in_file), ("module", self.only_in_module)):
            if names:
                lines += [f"Only in the {title}:", *(f"  {name} {text}" for name, text in names.items())]
        return "\n".join(lines)


def compare_parameters(classifier: Classifier, module: nn.Module) -> ParameterComparison:
    """Compare the parameters of a classifier with those of a live module.

    Parameters are matched by their values, whatever their names and however an exporter has laid them out or merged
    them; what is left is matched by name and shape.

    Args:
        classifier: From ``load_model``.
        module: The module that the file was exported from, with the same weights.

    Examples:
        >>> import torch
        >>> import wsb
        >>> module = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3))
        >>> print(wsb.compare_parameters(wsb.from_module(module), module))
        4 parameters of the file are parameters of the module.
    """
    comparing = _Comparing(
        {name: tensor.detach().cpu() for name, tensor in classifier.parameters.items()},
        {name: tensor.detach().cpu() for name, tensor in module.named_parameters()},
    )
    for how, test in _TESTS:
        comparing.pair(how, test)
    comparing.merge()
    comparing.fold(module)
    comparing.pair("other values", lambda a, b: a.shape == b.shape, same_name=True)
    buffers = {name: tensor.detach().cpu() for name, tensor in module.named_buffers()}
    order = list(classifier.parameters)
    return ParameterComparison(
        matches=tuple(sorted(comparing.matches, key=lambda match: order.index(match.file))),
        only_in_file={
            name: _described(a, _in_file(name, a, classifier, buffers)) for name, a in comparing.file.items()
        },
        only_in_module={name: _described(b, _in_module(name, b, classifier)) for name, b in comparing.module.items()},
    )


_Test = Callable[[Tensor, Tensor], bool]


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b.to(a.dtype))


def _rows(a: Tensor, b: Tensor) -> bool:
    """Return whether the rows of one tensor are some of those of a table."""
    if b.ndim != 2 or not 0 < a.numel() < b.numel() or a.shape[-1:] != b.shape[-1:]:
        return False
    table = b.to(a.dtype)
    return all(bool((table[table[:, 0] == row[0]] == row).all(dim=1).any()) for row in a.reshape(-1, a.shape[-1]))


_TESTS: tuple[tuple[How, _Test], ...] = (
    ("equal", _equal),
    ("transposed", lambda a, b: b.ndim == 2 and _equal(a, b.T)),
    ("reshaped", lambda a, b: _equal(a.reshape(-1), b.reshape(-1))),
    ("reordered", lambda a, b: a.numel() > 1 and _equal(_values(a), _values(b.to(a.dtype)))),
    ("rows of a table", _rows),
)


def _values(*tensors: Tensor) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors]).sort().values


@dataclass
class _Comparing:
    """The parameters that are not matched yet, and the matches."""

    file: dict[str, Tensor]
    module: dict[str, Tensor]
    matches: list[Match] = field(default_factory=list)

    def pair(self, how: How, test: _Test, *, same_name: bool = False) -> None:
        """Match what passes a test, tensors of the same name first."""
        for name, a in list(self.file.items()):
            others = [name, *(() if same_name else self.module)]
            found = next((other for other in others if other in self.module and test(a, self.module[other])), None)
            if found is not None:
                self._match(name, (found,), how)

    def merge(self) -> None:
        """Match what holds several tensors of the module in any order, such as the directions of a recurrent layer."""
        for name, a in list(self.file.items()):
            parts = {
                other: b.to(a.dtype)
                for other, b in self.module.items()
                if b.numel() < a.numel() and bool(torch.isin(b.to(a.dtype), a).all())
            }
            if sum(b.numel() for b in parts.values()) == a.numel() and torch.equal(
                _values(a), _values(*parts.values())
            ):
                self._match(name, tuple(parts), "merged")

    def fold(self, module: nn.Module) -> None:
        """Match convolutions and dense layers that have taken in the batch normalisation after them."""
        norms = {name: each for name, each in module.named_modules() if isinstance(each, _NORMS)}
        for layer, weight in [
            (name[: -len("weight")], b) for name, b in self.module.items() if name.endswith("weight")
        ]:
            for norm, scale, shift in _scales(norms):
                found = self._folded(weight, scale)
                if found is None:
                    continue
                own = tuple(name for name in (f"{layer}bias",) if name in self.module)
                bias = self.module[own[0]].double() if own else torch.zeros(1).double()
                moved = bias * scale + shift
                self._match(found, (f"{layer}weight", f"{norm}.weight"), "batch normalisation merged")
                for name, a in list(self.file.items()):
                    if a.numel() == len(moved) and torch.allclose(a.reshape(-1).double(), moved, _CLOSE, _CLOSE):
                        self._match(name, (*own, f"{norm}.bias"), "batch normalisation merged")
                        break
                norms.pop(norm)
                break

    def _folded(self, weight: Tensor, scale: Tensor) -> str | None:
        """Return the file's tensor that is a weight with its channels scaled."""
        for axis in range(min(weight.ndim, 2)):
            if weight.shape[axis] != len(scale):
                continue
            expected = weight.double() * scale.reshape([-1 if each == axis else 1 for each in range(weight.ndim)])
            for name, a in self.file.items():
                for b in (expected, expected.T) if weight.ndim == 2 else (expected,):
                    if a.shape == b.shape and torch.allclose(a.double(), b, _CLOSE, _CLOSE * float(b.abs().max())):
                        return name
        return None

    def _match(self, file: str, module: tuple[str, ...], how: How) -> None:
        del self.file[file]
        for name in module:
            self.module.pop(name, None)
        self.matches.append(Match(file=file, module=module, how=how))


def _scales(norms: Mapping[str, nn.Module]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Scale and shift of each batch normalisation in evaluation mode."""
    for name, norm in list(norms.items()):
        mean, variance, gamma, beta = (
            getattr(norm, each) for each in ("running_mean", "running_var", "weight", "bias")
        )
        if mean is None or gamma is None:
            continue
        scale = (gamma / torch.sqrt(variance + norm.eps)).detach().cpu().double()
        yield name, scale, beta.detach().cpu().double() - mean.cpu().double() * scale


def _described(tensor: Tensor, note: str) -> str:
    return f"{list(tensor.shape)}{note}"


def _in_file(name: str, tensor: Tensor, classifier: Classifier, buffers: Tensors) -> str:
    """Say what a parameter that the module lacks may be."""
    if name in classifier.derived:
        return f": computed from {' and '.join(classifier.derived[name])}"
    found = next((name for name, b in buffers.items() if any(test(tensor, b) for _, test in _TESTS[:4])), None)
    return "" if found is None else f": holds the values of the buffer {found}"


def _in_module(name: str, tensor: Tensor, classifier: Classifier) -> str:
    """Say what became of a parameter that the file lacks."""
    computed = [each for each in classifier.parameters if name in classifier.derived.get(each, ())]
    if computed:
        return f": the file stores {' and '.join(computed)}, computed from it"
    for name, constant in classifier.constants.items():
        if any(test(constant, tensor) for _, test in _TESTS[:4]):
            return f": the file stores it as {name}; include it with the option parameters"
    if not bool(tensor.any()):
        return ": zero, which exporters leave out"
    return ""
