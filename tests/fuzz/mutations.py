"""Damaged files: real ones changed where it matters to a reader, and packed so that the change is reached."""

from __future__ import annotations

import ast
import io
import json
import random
import struct
import warnings
import zipfile
from collections.abc import Callable
from typing import Any

import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

NUMBERS = (
    0,
    1,
    -1,
    2,
    7,
    127,
    128,
    255,
    256,
    65535,
    2**31 - 1,
    2**31,
    2**32,
    2**53,
    2**62,
    2**63 - 1,
    -(2**31),
    -(2**63),
)
REALS = (0.0, -0.0, 1.0, -1.0, 1e-320, 1e308, float("inf"), float("-inf"), float("nan"))
TEXTS = ("", "x", "..", "/", "\x00", "é", "a" * 5000, "__import__('os')", "-1", "1e999", "float32", "torch.float64")
DTYPES = ("<f8", ">f4", "<f2", "|O", "<U0", "|S0", "<U8", "<M8[s]", "<c16", "|b1", "<u8", "|V4")
LEAST_CHANGES, MOST_CHANGES = 1, 4

Source = random.Random
_TYPES = FieldDescriptor


def mutated(content: bytes, kind: str, source: Source) -> bytes:
    """Return a file with a few changes.

    Args:
        content: A file that a reader takes.
        kind: Its suffix: ``onnx``, ``pt``, ``pt2``, ``npz`` or ``safetensors``; bytes alone change for others.
        source: Determines the changes.
    """
    change = _BY_KIND.get(kind)
    if change is None or source.random() < 0.2:
        return _bytes(content, source)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile remarks on names that appear twice
        return change(content, source)


def _bytes(content: bytes, source: Source) -> bytes:
    found = bytearray(content)
    for _ in range(source.randint(LEAST_CHANGES, MOST_CHANGES)):
        start = source.randint(0, len(found))
        stop = min(len(found), start + source.choice((1, 1, 2, 4, 8, 64)))
        match source.randrange(7):
            case 0:
                found[start:stop] = bytes(source.getrandbits(8) for _ in range(stop - start))
            case 1:
                found[start:stop] = b""
            case 2:
                found[start:start] = found[start:stop] * source.choice((1, 2, 100))
            case 3:
                number = source.choice(NUMBERS) % 2**64
                found[start:stop] = struct.pack("<Q", number)[: source.choice((1, 2, 4, 8))]
            case 4:
                other = source.randint(0, len(found))
                found[start:stop] = found[other : other + stop - start]
            case 5:
                del found[start:]
            case _ if found:
                found[start % len(found)] ^= 1 << source.randrange(8)
    return bytes(found)


def _onnx(content: bytes, source: Source) -> bytes:
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
        for _ in range(source.randint(LEAST_CHANGES, MOST_CHANGES)):
            _message(_any_message(model, source), source)
        return model.SerializeToString()
    except (DecodeError, ValueError):
        return _bytes(content, source)


def _any_message(message: Message, source: Source) -> Message:
    """Return a message at any depth; deep ones are as likely as shallow ones."""
    found, last = [message], [message]
    while last:
        inner: list[Message] = []
        for each in last:
            for field, value in each.ListFields():
                if field.type == _TYPES.TYPE_MESSAGE:
                    inner += list(value) if field.is_repeated else [value]
        last = inner
        found += inner
    return source.choice(found)


def _message(message: Message, source: Source) -> None:
    present = [field for field, _ in message.ListFields()]
    fields = present if present and source.random() < 0.8 else list(message.DESCRIPTOR.fields)
    field = source.choice(fields)
    if source.random() < 0.15:
        message.ClearField(field.name)
    elif field.type == _TYPES.TYPE_MESSAGE:
        _submessage(message, field, source)
    elif field.is_repeated:
        values = list(getattr(message, field.name))
        place = source.randint(0, len(values))
        values[place : place + source.randint(0, 1)] = [_scalar(field, values, source)] * source.choice((1, 1, 1, 40))
        message.ClearField(field.name)
        getattr(message, field.name).extend(values)
    else:
        setattr(message, field.name, _scalar(field, [getattr(message, field.name)], source))


def _submessage(message: Message, field: Any, source: Source) -> None:
    value = getattr(message, field.name)
    if not field.is_repeated:
        value.SetInParent()
    elif not value or source.random() < 0.3:
        value.add()
    elif source.random() < 0.5:
        value.add().CopyFrom(source.choice(list(value)))
    else:
        del value[source.randrange(len(value))]


def _scalar(field: Any, values: list[Any], source: Source) -> Any:
    """Return a value that the field can hold."""
    if field.type == _TYPES.TYPE_BYTES:
        return _bytes(values[0] if values else b"12345678", source)
    if field.type == _TYPES.TYPE_STRING:
        return source.choice([*TEXTS, *(text + "'" for text in values)])
    if field.type == _TYPES.TYPE_ENUM:
        return source.choice([value.number for value in field.enum_type.values])
    if field.type in (_TYPES.TYPE_FLOAT, _TYPES.TYPE_DOUBLE):
        return source.choice(REALS)
    bits = 32 if field.type in (_TYPES.TYPE_INT32, _TYPES.TYPE_UINT32) else 64
    number = source.choice([*NUMBERS, *(value + 1 for value in values if isinstance(value, int))]) % 2**bits
    signed = field.type in (_TYPES.TYPE_INT32, _TYPES.TYPE_INT64)
    return number - 2**bits if signed and number >= 2 ** (bits - 1) else number


def _safetensors(content: bytes, source: Source) -> bytes:
    length = int.from_bytes(content[:8], "little")
    try:
        header = _json(content[8 : 8 + length], source)
    except ValueError:
        return _bytes(content, source)
    stated = len(header) if source.random() < 0.9 else source.choice(NUMBERS) % 2**64
    return struct.pack("<Q", stated) + header + content[8 + length :]


def _archive(content: bytes, source: Source) -> bytes:
    """Change members, and pack them with sizes and checksums that fit."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError, EOFError, ValueError):
        return _bytes(content, source)
    for _ in range(source.randint(LEAST_CHANGES, MOST_CHANGES)):
        if not members:
            break
        place = source.randrange(len(members))
        name, inner = members[place]
        match source.randrange(12):
            case 0:
                del members[place]
            case 1:
                members.append((name, inner))
            case 2:
                members[place] = source.choice(TEXTS) + name, inner
            case _:
                members[place] = name, _member(name, inner, source)
    buffer = io.BytesIO()
    compression = source.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, inner in members:
            archive.writestr(name.replace("\x00", "_") or "_", inner)
    return buffer.getvalue()


def _member(name: str, content: bytes, source: Source) -> bytes:
    try:
        if name.endswith(".json"):
            return _json(content, source)
        if name.endswith(".npy"):
            return _npy(content, source)
        if name.endswith(".py"):
            return _text(content.decode(), source).encode()
    except (ValueError, SyntaxError):
        pass
    return _bytes(content, source)


def _json(content: bytes, source: Source) -> bytes:
    """Change one value at any depth."""
    document = json.loads(content)
    places: list[tuple[Any, Any]] = []
    last: list[Any] = [document]
    while last:
        inner: list[Any] = []
        for each in last:
            items = list(each.items()) if isinstance(each, dict) else list(enumerate(each))
            places += [(each, key) for key, _ in items]
            inner += [value for _, value in items if isinstance(value, dict | list)]
        last = inner
    if not places:
        return _bytes(content, source)
    where, key = source.choice(places)
    value = where[key]
    match source.randrange(6):
        case 0:
            del where[key]
        case 1 if isinstance(value, list) and value:
            value.append(source.choice(value))
        case 2 if isinstance(where, dict):
            where[source.choice(TEXTS)] = where.pop(key)
        case 3 if isinstance(value, int | float) and not isinstance(value, bool):
            where[key] = source.choice((*NUMBERS, 1.5, value + 1))
        case 4:
            other, name = source.choice(places)
            where[key] = other.get(name) if isinstance(other, dict) else other[name] if name < len(other) else None
        case _:
            where[key] = source.choice((*NUMBERS, *TEXTS, None, True, [], {}, [[]], 1e308))
    try:
        return json.dumps(document).encode()
    except (ValueError, RecursionError):  # a value came to hold itself
        return _bytes(content, source)


def _npy(content: bytes, source: Source) -> bytes:
    """Change what the header states."""
    start = content.index(b"{")
    stop = content.index(b"\n", start) + 1
    header = ast.literal_eval(content[start:stop].decode())
    match source.randrange(4):
        case 0:
            dtypes = (
                "<f8",
                ">f4",
                "<f2",
                "|O",
                "<U0",
                "|S0",
                "<U8",
                "<M8[s]",
                "<c16",
                "|b1",
                "<u8",
                "|V4",
                [("a", "<f4")],
            )
            header["descr"] = source.choice(dtypes)
        case 1:
            shape = list(header["shape"])
            shape[source.randint(0, len(shape)) :][:1] = [source.choice(NUMBERS)]
            header["shape"] = (*shape, source.choice(NUMBERS)) if source.random() < 0.5 else tuple(shape)
        case 2:
            header["fortran_order"] = not header["fortran_order"]
        case _:
            header["shape"] = tuple(reversed(header["shape"]))
    text = repr(header).encode() + b"\n"
    return content[:8] + struct.pack("<H", len(text)) + text + content[stop:]


def _text(content: str, source: Source) -> str:
    """Change a word or a line of a program."""
    lines = content.splitlines(keepends=True) or [""]
    place = source.randrange(len(lines))
    match source.randrange(4):
        case 0:
            del lines[place]
        case 1:
            lines.insert(place, source.choice(lines))
        case 2:
            words = lines[place].split(" ")
            words[source.randrange(len(words))] = source.choice((*TEXTS, *map(str, NUMBERS)))
            lines[place] = " ".join(words)
        case _:
            other = source.randrange(len(lines))
            lines[place], lines[other] = lines[other], lines[place]
    return "".join(lines)


_BY_KIND: dict[str, Callable[[bytes, Source], bytes]] = {
    "onnx": _onnx,
    "pt": _archive,
    "pt2": _archive,
    "npz": _archive,
    "safetensors": _safetensors,
}
