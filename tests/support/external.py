"""A model whose weights are in further files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import onnx

from support.service import onnx_mlp

DATA = "m.onnx.data"


def external_mlp(*names: str, seed: int = 0) -> tuple[bytes, dict[str, bytes]]:
    """A model and its data files, by the names by which it refers to them; its tensors go to these in turn."""
    names = names or (DATA,)
    model = onnx.load_from_string(onnx_mlp(seed=seed))
    data = dict.fromkeys(names, b"")
    for index, tensor in enumerate(model.graph.initializer):
        name, content = names[index % len(names)], tensor.raw_data
        entries = {"location": name, "offset": str(len(data[name])), "length": str(len(content))}
        data[name] += content
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=value)
    return model.SerializeToString(), data


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def combined(model: bytes, data: Mapping[str, bytes]) -> str:
    """The identifier of a model with data files, spelled out."""
    files = [("model", model), *sorted(data.items())]
    lines = "".join(f"{name} {len(content)} {sha256(content)}\n" for name, content in files)
    return f"sha256:{sha256(lines.encode())}"


def form(model: bytes, data: Mapping[str, bytes], **others: bytes) -> list[tuple[str, tuple[str, bytes]]]:
    """The parts of a form as curl sends them."""
    parts = [("model", ("m.onnx", model)), *(("model_data", each) for each in data.items())]
    return parts + [(name, (name, content)) for name, content in others.items()]
