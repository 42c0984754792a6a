"""Networks that are analysed: small ones of each kind, and large ones for products."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

CLASSES = 10


def perceptron(*widths: int) -> nn.Module:
    layers = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), nn.Tanh())]
    return nn.Sequential(*layers[:-1])


def convolutions(norm: Callable[[int], nn.Module], channels: int = 8) -> nn.Module:
    first, second = nn.Conv2d(2, channels, 3, padding=1), nn.Conv2d(channels, channels, 3, stride=2, groups=2)
    pooled = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES))
    return nn.Sequential(first, norm(channels), nn.Tanh(), second, nn.SiLU(), *pooled)


class Residual(nn.Module):
    """Two convolutions with batch normalisation beside the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.body(x))


def residual(width: int, blocks: int) -> nn.Module:
    """A residual network of four stages, each with half the resolution and twice the channels."""
    parts: list[nn.Module] = [nn.Conv2d(3, width, 7, stride=4, padding=3)]
    for stage in range(4):
        channels = width << stage
        parts += [Residual(channels) for _ in range(blocks)]
        if stage < 3:
            parts.append(nn.Conv2d(channels, 2 * channels, 1, stride=2))
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width << 3, CLASSES))


class Encoder(nn.Module):
    """A transformer encoder over tokens with a stored table of positions; classifies by the mean."""

    def __init__(self, *, tokens: int, length: int, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(tokens, width)
        self.register_buffer("positions", 0.02 * torch.randn(length, width))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(layers)
        )
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.tokens(x) + self.positions
        for layer in self.layers:
            h = layer(h)
        return self.head(h.mean(dim=1))


def small() -> dict[str, tuple[nn.Module, Tensor]]:
    """Return networks of each kind with their inputs."""
    torch.manual_seed(0)
    images = torch.randn(48, 2, 9, 9)
    encoder = Encoder(tokens=40, length=6, width=16, heads=2, layers=2)
    return {
        "perceptron": (perceptron(20, 24, 16, CLASSES), torch.randn(48, 20)),
        "batch norm": (convolutions(nn.BatchNorm2d), images),
        "group norm": (convolutions(lambda channels: nn.GroupNorm(2, channels)), images),
        "encoder": (encoder, torch.randint(0, 40, (48, 6))),
    }
