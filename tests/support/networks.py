"""Random small perceptrons that make rounding hurt, with the exact ends of their spectra."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import torch
from torch import Tensor, nn

import wsb_engine as wsb
from support.exact import Dense, Extreme, hessian, largest

ACTIVATIONS: dict[str, nn.Module] = {
    "tanh": nn.Tanh(),
    "sigmoid": nn.Sigmoid(),
    "softplus": nn.Softplus(threshold=60),
    "gelu": nn.GELU(),
    "silu": nn.SiLU(),
    "relu": nn.ReLU(),
}
LIKELY = ["tanh", "tanh", "tanh", "sigmoid", "softplus", "softplus", "gelu", "silu", "relu"]
FEATURES = {
    "plain": (0.0, 1.0),
    "year": (2015.0, 3e-3),
    "zip code": (94110.0, 0.5),
    "seconds": (1.7e9, 3600.0),
    "milliseconds": (1.7e12, 3e4),
    "huge": (0.0, 1e12),
}
"""Mean and spread of a feature whose standardisation is folded into the first layer."""


@dataclass(frozen=True)
class Case:
    """A network with a batch and options, and what is asked of it."""

    seed: int
    description: str
    module: nn.Sequential
    batch: wsb.Batch
    options: wsb.Options
    margin: float

    def classifier(self) -> wsb.Classifier:
        return wsb.from_module(self.module)

    def exact(self) -> tuple[Extreme, Extreme]:
        """λ_max of H, and of −H."""
        linear = [each for each in self.module if isinstance(each, nn.Linear)]
        layers, count = [], 0
        names = {id(p): name for name, p in self.module.named_parameters()}
        for layer in linear:
            indices = []
            for tensor in (layer.weight, layer.bias):
                if tensor is None:
                    indices.append(None)
                    continue
                learned = _selected(names[id(tensor)], self.options.parameters)
                numbers = np.arange(count, count + tensor.numel()).reshape(tensor.shape)
                indices.append(numbers if learned else np.full(tensor.shape, -1))
                count += tensor.numel() * learned
            weight = layer.weight.detach().numpy()
            bias = None if layer.bias is None else layer.bias.detach().numpy()
            layers.append(Dense(weight, indices[0], bias, indices[1]))
        kinds = [name for each in self.module for name, kind in ACTIVATIONS.items() if isinstance(each, type(kind))]
        classes = linear[-1].out_features
        y = self.batch.y
        if y.ndim == 1:
            y = y[:, None].astype(float) if classes == 1 else np.eye(classes)[y]
        elif classes == 1:
            y = y[:, 1:]
        w = np.ones(len(y)) if self.batch.weights is None else self.batch.weights
        H = hessian(layers, kinds, self.batch.x["x"].numpy(), y, w, count, self.margin)
        return largest(H), largest(-H)


def _selected(name: str, patterns: tuple[str, ...]) -> bool:
    includes = [each for each in patterns if not each.startswith("!")] or ["*"]
    excludes = [each[1:] for each in patterns if each.startswith("!")]
    return any(fnmatchcase(name, each) for each in includes) and not any(fnmatchcase(name, each) for each in excludes)


def case(seed: int, most: int = 25) -> Case:
    """The network of a seed, with at most so many parameters."""
    rng = np.random.default_rng(seed)
    single = bool(rng.random() < 0.3)
    widths = next(_widths(rng, most))
    bias = bool(rng.random() < 0.85)
    kinds = [str(rng.choice(LIKELY))] * (len(widths) - 2)
    modules: list[nn.Module] = []
    for l, (inside, outside) in enumerate(itertools.pairwise(widths)):
        modules.append(nn.Linear(inside, outside, bias=bias).double())
        if l < len(kinds):
            modules.append(ACTIVATIONS[kinds[l]])
    module = nn.Sequential(*modules)
    size = float(rng.choice([0.3, 1.0, 1.0, 3.0, 30.0]))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.from_numpy(rng.normal(size=parameter.shape) * size))
        if len(widths) > 2 and rng.random() < 0.15 and widths[1] > 1:  # two units that are one: eigenvalues repeat
            module[0].weight[1] = module[0].weight[0]
            if bias:
                module[0].bias[1] = module[0].bias[0]
    samples = int(rng.choice([1, 1, 2, 3, 4, 5, 7]))
    kind = str(rng.choice(list(FEATURES), p=[0.5, 0.1, 0.1, 0.1, 0.1, 0.1]))
    mean, spread = FEATURES[kind]
    normal = rng.normal(size=(samples, widths[0]))
    if rng.random() < 0.15:
        normal[:] = normal[0]
    x = mean + spread * normal
    if mean or spread != 1:
        with torch.no_grad():
            module[0].weight /= spread
            if bias:
                module[0].bias -= module[0].weight.sum(dim=1) * mean
    z, margin = _sharpened(module, x, rng)
    if single:
        x = x.astype(np.float32).astype(np.float64)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.copy_(parameter.float().double())
    y = _labels(z, rng)
    weights = rng.random(samples) + (0.0 if samples > 1 else 0.1) if rng.random() < 0.3 else None
    options = wsb.Options(
        dtype="float32" if single else "float64",
        moments=str(rng.choice(["auto", "auto", "none", "basis"])),
        relative_gap=float(rng.choice([1e-6, 1e-6, 1e-12])),
        ends=str(rng.choice(["both", "both", "largest"])),
        spectrum=str(rng.choice(["none", "none", "dense", "top"])),
        parameters=_patterns(module, rng),
    )
    described = f"seed {seed}: {widths} {kinds[:1]} weights {size} features {kind} margin {margin:.3g} {options!r}"
    return Case(seed, described, module.eval(), wsb.Batch(x, y, weights), options, margin)


def _widths(rng: np.random.Generator, most: int) -> Iterator[list[int]]:
    while True:
        depth = int(rng.choice([1, 2, 2, 2, 3, 3, 4, 5]))
        widths = [int(rng.integers(1, 5)) for _ in range(depth)] + [int(rng.integers(1, 5))]
        if sum((a + 1) * b for a, b in itertools.pairwise(widths)) <= most:
            yield widths


def _sharpened(module: nn.Sequential, x: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, float]:
    """Logits, and their largest margin, after the last layer was scaled to a random one."""
    inputs = torch.from_numpy(x)
    with torch.no_grad():
        z = module(inputs)
        found = _margins(z)
        wanted = float(10 ** rng.uniform(0, math.log10(700))) if rng.random() < 0.6 else 0.0
        typical = float(found.max())
        if wanted and typical > 0:
            module[-1].weight *= wanted / typical
            if module[-1].bias is not None:
                module[-1].bias *= wanted / typical
        elif typical > 700:
            module[-1].weight *= 700 / typical
            if module[-1].bias is not None:
                module[-1].bias *= 700 / typical
        z = module(inputs)
    return z, float(_margins(z).max())


def _margins(z: Tensor) -> Tensor:
    return z.abs() if z.shape[1] == 1 else (z.amax(dim=1) - z.amin(dim=1))


def _labels(z: Tensor, rng: np.random.Generator) -> np.ndarray:
    classes = max(z.shape[1], 2)
    best = (z[:, 0] > 0).long() if z.shape[1] == 1 else z.argmax(dim=1)
    kind = rng.choice(["right", "right", "wrong", "random", "soft"])
    if kind == "right":
        return best.numpy()
    if kind == "wrong":
        return ((best + 1) % classes).numpy()
    if kind == "random":
        return rng.integers(0, classes, len(z))
    return rng.dirichlet(np.full(classes, 0.5), len(z))


def _patterns(module: nn.Sequential, rng: np.random.Generator) -> tuple[str, ...]:
    names = [name for name, _ in module.named_parameters()]
    kind = rng.choice(["all", "all", "all", "biases", "without one", "one"])
    if kind == "biases" and any(name.endswith("bias") for name in names):
        return ("*bias",)
    if kind == "without one" and len(names) > 1:
        return ("*", f"!{rng.choice(names)}")
    return (str(rng.choice(names)),) if kind == "one" else ("*",)
