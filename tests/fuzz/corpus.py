"""Files to change: each with the file of the other kind that goes with it."""

from __future__ import annotations

import io
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from support.pt2 import exported
from torch import Tensor, nn

FOUND = Path(__file__).parent / "found"
"""Files that once led to an unhandled error or worse, by kind."""
MODELS, BATCHES = ("onnx", "pt", "pt2"), ("npz", "safetensors")


class Attention(nn.Module):
    """A token of each sample looks at the others; integers come in."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.mix, self.out = nn.Embedding(9, 4), nn.Linear(4, 12), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.mix(self.embedding(x)).chunk(3, -1)
        z: Tensor = self.out((torch.softmax(q @ k.transpose(1, 2) / 2, -1) @ v).mean(1))
        return z


class Recurrent(nn.Module):
    """The last state of an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.out(self.lstm(x)[0][:, -1])
        return z


def _networks() -> dict[str, tuple[nn.Module, Tensor]]:
    torch.manual_seed(0)
    convolution = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
    return {
        "mlp": (nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), torch.randn(6, 4)),
        "convolution": (convolution, torch.randn(6, 1, 4, 4)),
        "attention": (Attention(), torch.randint(0, 9, (6, 5))),
        "recurrent": (Recurrent(), torch.randn(6, 4, 3)),
    }


@cache
def pairs(kind: str) -> tuple[tuple[bytes, bytes], ...]:
    """Return pairs of a model and a batch, one of which is of this kind: the file to change comes first."""
    found = []
    for module, x in _networks().values():
        module.eval().requires_grad_(False)
        y = torch.arange(len(x)) % 3
        if kind in BATCHES:
            found.append((_batch(kind, x, y), _model("onnx", module, x)))
        else:
            found.append((_model(kind, module, x), _batch("npz", x, y)))
    return tuple(found)


def _batch(kind: str, x: Tensor, y: Tensor) -> bytes:
    if kind == "safetensors":
        return save({"x": x, "y": y, "weights": torch.ones(len(y))})
    buffer = io.BytesIO()
    np.savez(buffer, x=x.numpy(), y=y.numpy(), weights=np.ones(len(y)))
    return buffer.getvalue()


def _model(kind: str, module: nn.Module, x: Tensor) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind == "pt2":
            return exported(module, x[:2])
        if kind == "pt":
            torch.jit.save(torch.jit.trace(module, x[:2], check_trace=False), buffer)
        else:
            names = {"input_names": ["x"], "output_names": ["z"], "dynamic_axes": {"x": {0: "n"}, "z": {0: "n"}}}
            torch.onnx.export(module, (x[:2],), buffer, dynamo=False, opset_version=17, **names)
    return buffer.getvalue()
