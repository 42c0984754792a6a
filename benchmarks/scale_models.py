"""Models of the sizes that people ship, from torch's own blocks, and batches for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

import wsb

Batches = Callable[[int, torch.Generator], Tensor]


@dataclass(frozen=True)
class Case:
    """A network and samples for it."""

    build: Callable[[], nn.Module]
    inputs: Batches
    classes: int
    samples: int
    """Number of samples in the benchmarks."""

    def module(self) -> nn.Module:
        """Return the network in evaluation mode, always with the same parameters."""
        torch.manual_seed(0)
        return self.build().eval()

    def classifier(self) -> wsb.Classifier:
        return wsb.from_module(self.module())

    def batch(self, samples: int | None = None) -> wsb.Batch:
        generator, count = torch.Generator().manual_seed(1), samples or self.samples
        return wsb.Batch(
            self.inputs(count, generator), torch.randint(self.classes, (count,), generator=generator).numpy()
        )


class Residual(nn.Module):
    """A block of a ResNet: two 3 × 3 convolutions, or 1 × 1, 3 × 3 and 1 × 1 (He et al. 2016, figures 2 and 5)."""

    def __init__(self, before: int, width: int, stride: int, *, bottleneck: bool) -> None:
        super().__init__()
        after = 4 * width if bottleneck else width
        if bottleneck:
            convolutions = [
                nn.Conv2d(before, width, 1, bias=False),
                nn.Conv2d(width, width, 3, stride, 1, bias=False),
                nn.Conv2d(width, after, 1, bias=False),
            ]
        else:
            convolutions = [
                nn.Conv2d(before, width, 3, stride, 1, bias=False),
                nn.Conv2d(width, width, 3, 1, 1, bias=False),
            ]
        layers: list[nn.Module] = []
        for convolution in convolutions:
            layers += [convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU()]
        self.branch = nn.Sequential(*layers[:-1])
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.skip = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.branch(x) + self.skip(x))


def resnet(depths: tuple[int, ...], *, bottleneck: bool, classes: int = 1000) -> nn.Module:
    """Return a ResNet for images of three channels."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
    ]
    channels = 64
    for stage, depth in enumerate(depths):
        width = 64 << stage
        for block in range(depth):
            layers.append(Residual(channels, width, 2 if stage and not block else 1, bottleneck=bottleneck))
            channels = 4 * width if bottleneck else width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


class TextEncoder(nn.Module):
    """An encoder of token sequences with a classifier on the first token."""

    def __init__(
        self,
        *,
        layers: int = 6,
        width: int = 768,
        heads: int = 12,
        vocabulary: int = 30522,
        length: int = 512,
        classes: int = 2,
    ) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.norm = nn.LayerNorm(width)
        self.blocks = encoder(layers, width, heads, norm_first=False)
        self.head = nn.Linear(width, classes)
        nn.init.normal_(self.words.weight, std=0.02)
        nn.init.normal_(self.positions.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        return self.head(self.blocks(self.norm(self.words(tokens) + self.positions(places)))[:, 0])  # type: ignore[no-any-return]


class VisionTransformer(nn.Module):
    """An encoder of patches of 16 × 16 pixels with a class token (Dosovitskiy et al. 2021)."""

    def __init__(
        self, *, layers: int = 12, width: int = 768, heads: int = 12, size: int = 224, classes: int = 1000
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 16, 16)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, (size // 16) ** 2 + 1, width))
        self.blocks = encoder(layers, width, heads, norm_first=True)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(images), -1, -1), patches], dim=1) + self.positions
        return self.head(self.norm(self.blocks(tokens)[:, 0]))  # type: ignore[no-any-return]


def encoder(layers: int, width: int, heads: int, *, norm_first: bool) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(
        width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=norm_first
    )
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)


def conv_net() -> nn.Module:
    """Return a convolutional network with 4 538 parameters for 10 classes and one channel."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.GELU(),
        nn.AvgPool2d(2),
        nn.Conv2d(6, 12, 3, padding=1),
        nn.GELU(),
        nn.AvgPool2d(2),
        nn.Conv2d(12, 32, 3, padding=1),
        nn.GELU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


def mlp(*widths: int) -> nn.Module:
    """Return a tanh MLP."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def images(channels: int, size: int) -> Batches:
    """Return batches of square images."""
    return lambda count, generator: torch.randn(count, channels, size, size, generator=generator)


def _tokens(vocabulary: int, length: int) -> Batches:
    return lambda count, generator: torch.randint(vocabulary, (count, length), generator=generator)


def _rows(features: int) -> Batches:
    return lambda count, generator: torch.randn(count, features, generator=generator)


CASES = {
    "conv_net": Case(conv_net, images(1, 16), 10, 200),
    "mlp": Case(lambda: mlp(784, 128, 10), _rows(784), 10, 1000),
    "small_encoder": Case(
        lambda: TextEncoder(layers=2, width=64, heads=4, vocabulary=1000, length=32), _tokens(1000, 16), 2, 64
    ),
    "resnet18": Case(lambda: resnet((2, 2, 2, 2), bottleneck=False), images(3, 64), 1000, 64),
    "resnet50": Case(lambda: resnet((3, 4, 6, 3), bottleneck=True), images(3, 64), 1000, 16),
    "distilbert": Case(TextEncoder, _tokens(30522, 32), 2, 16),
    "vit_b": Case(VisionTransformer, images(3, 224), 1000, 4),
}
