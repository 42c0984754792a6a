"""Models and batches that are broken, or made to do harm."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from support.service import onnx_mlp


class Evil:
    """Would leave a file behind if it were ever unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, ("/tmp/wsb-was-here", "w"))  # noqa: S108


def zipped(members: dict[str, bytes], *, compressed: bool = False) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


def torchscript(pickled: bytes, code: bytes = b"class M(Module):\n  __parameters__ = []\n") -> bytes:
    """An archive of TorchScript's layout."""
    return zipped(
        {
            "m/data.pkl": pickled,
            "m/constants.pkl": pickled,
            "m/code/__torch__.py": code,
            "m/version": b"3\n",
            "m/byteorder": b"little",
        }
    )


def changed(change: Any, sizes: tuple[int, ...] = (4, 5, 3)) -> bytes:
    """A good model after a change of its protobuf message."""
    model = ModelProto()
    model.ParseFromString(onnx_mlp(sizes))
    change(model)
    return model.SerializeToString()


def cyclic(model: ModelProto) -> None:
    model.graph.node[0].input[0] = model.graph.node[-1].output[0]


def external(location: str) -> Any:
    def change(model: ModelProto) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", location

    return change


def claiming(*dims: int) -> Any:
    """The first weight claims another shape than its bytes have."""

    def change(model: ModelProto) -> None:
        del model.graph.initializer[0].dims[:]
        model.graph.initializer[0].dims.extend(dims)

    return change


def first_node(**attributes: Any) -> Any:
    def change(model: ModelProto) -> None:
        for name, value in attributes.items():
            setattr(model.graph.node[0], name, value)

    return change


def weights(value: float, index: int = 0) -> Any:
    def change(model: ModelProto) -> None:
        tensor = model.graph.initializer[index]
        array = np.full(list(tensor.dims), value)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))

    return change


def without(field: str) -> Any:
    return lambda model: model.graph.ClearField(field)


def twice_named(model: ModelProto) -> None:
    model.graph.node.append(model.graph.node[-1])


def opset(version: int, domain: str = "") -> Any:
    def change(model: ModelProto) -> None:
        model.opset_import[0].version = version
        model.opset_import[0].domain = domain

    return change


def nested(levels: int) -> bytes:
    """A model whose graph holds a graph that holds a graph …"""
    body = GraphProto(name="innermost").SerializeToString()
    for _ in range(levels):
        attribute = field(6, body) + field(1, b"body") + varint(20 << 3) + varint(AttributeProto.GRAPH)
        node = field(4, b"If") + field(5, attribute)
        body = field(2, b"g") + field(1, node)
    return b"\x08\x0a" + field(7, body) + field(8, b"\x10\x11")


def field(number: int, content: bytes) -> bytes:
    """A length-delimited field of a protobuf message."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(value: int) -> bytes:
    result = b""
    while value > 0x7F:
        result += bytes([value & 0x7F | 0x80])
        value >>= 7
    return result + bytes([value])


def no_parameters() -> bytes:
    value = helper.make_tensor_value_info
    nodes = [NodeProto(op_type="Tanh", input=["x"], output=["y"])]
    arguments = [value("x", TensorProto.DOUBLE, ["n", 4])], [value("y", TensorProto.DOUBLE, ["n", 4])]
    graph = helper.make_graph(nodes, "g", *arguments)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10).SerializeToString()


def npy(dtype: str, shape: Sequence[int] | str, content: bytes, *, header: str | None = None) -> bytes:
    """An .npy file that says of itself what it is told to."""
    text = header or f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}"
    text += " " * (-(len(text) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + content


def npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def with_member(name: str, content: bytes) -> bytes:
    """A good .npz with one member replaced, or one more."""
    x, y = np.zeros((2, 4)), np.array([0, 1])
    members = {"x.npy": npy("<f8", "(2, 4)", x.tobytes()), "y.npy": npy("<i8", "(2,)", y.tobytes())}
    return zipped({**members, name: content})


def safetensors(header: Any, content: bytes = bytes(80), *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + content


def tensor(dtype: str, shape: Sequence[int], start: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


def bomb(size: int = 1 << 28) -> bytes:
    """A small .npz with an array of so many bytes of zeros."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        with file.open("x.npy", "w") as member:
            member.write(npy("<f8", f"({size // 8}, 1)", b""))
            for _ in range(size >> 20):
                member.write(bytes(1 << 20))
        file.writestr("y.npy", npy("<i8", "(2,)", bytes(16)))
    return buffer.getvalue()


def evil_pickle() -> bytes:
    return pickle.dumps(Evil())
