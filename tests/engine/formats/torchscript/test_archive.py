"""Archives that are not as torch.jit.save writes them, refused from their bytes."""

from __future__ import annotations

import io
import pickle
import struct
import time
import warnings
import zipfile
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from wsb_engine import ModelError, load_model
from wsb_engine.formats.torchscript.archive.scan import checked_archive


@pytest.fixture
def plain(scripted: Any) -> bytes:
    torch.manual_seed(0)
    return scripted(nn.Sequential(nn.Linear(3, 2)))  # type: ignore[no-any-return]


def _code(data: bytes) -> str:
    start = time.process_time()
    with pytest.raises(ModelError) as caught:
        load_model(data)
    assert time.process_time() - start < 10
    assert caught.value.advice
    return caught.value.code


def _with_opcodes(*body: bytes) -> Callable[[bytes], bytes]:
    """The pickle with steps before its end that leave nothing on the stack."""
    return lambda content: content[:-1] + b"".join(body) + b"."


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _string(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


FUNCTIONS = {
    "os.system": ("os", "system"),
    "builtins.eval": ("builtins", "eval"),
    "a package of torch": ("torch._utils", "_rebuild_qtensor"),
    "an object of torch.classes": ("__torch__.torch.classes.backends", "Engine"),
    "a class with an odd name": ("__torch__.a b", "C"),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_pickle_that_refers_to_anything_else_is_refused(name: str, plain: bytes, rewritten: Any) -> None:
    for member in ("data.pkl", "constants.pkl"):
        data = rewritten(plain, {member: _with_opcodes(_global(*FUNCTIONS[name]), b"0")})
        assert _code(data) == "torchscript_code_refused"


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_of_python_is_refused(protocol: int, plain: bytes, rewritten: Any) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return (pytest.fail, ("the pickle was executed",))

    data = rewritten(plain, {"data.pkl": pickle.dumps(Trap(), protocol)})
    assert _code(data) in ("torchscript_code_refused", "model_invalid")


DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "opcodes that torch does not write": (_with_opcodes(b"N", b"\x85", b"\x93"), "torchscript_code_refused"),
    "nothing to take off the stack": (lambda content: b"\x80\x020000.", "model_invalid"),
    "no end": (lambda content: content[:-1], "model_invalid"),
    "no pickle": (lambda content: b"hello", "model_invalid"),
    "tuples 10 000 deep": (_with_opcodes(b")", b"\x85" * 10_000, b"0"), "model_too_complex"),
    "lists 10 000 deep": (_with_opcodes(b"]" * 10_000, b"a" * 9_999, b"0"), "model_too_complex"),
    "lists that grow within each other": (_with_opcodes(b"]q\xc8]q\xc9ah\xc9]a00"), "model_invalid"),
    "a type 10 000 deep": (_with_opcodes(_string("List[" * 10_000 + "int" + "]" * 10_000), b"0"), "model_too_complex"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_pickle_that_torch_could_not_follow_is_refused(name: str, plain: bytes, rewritten: Any) -> None:
    change, code = DAMAGES[name]
    assert _code(rewritten(plain, {"constants.pkl": change})) == code


def test_tensor_data_that_is_cut_is_refused(plain: bytes, rewritten: Any) -> None:
    assert _code(rewritten(plain, {"data/0": lambda content: content[:-4]})) == "model_invalid"


def test_tensor_data_that_is_missing_is_refused(plain: bytes) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(plain)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            if not name.endswith("/data/0"):
                new.writestr(name, old.read(name))
    assert _code(buffer.getvalue()) == "model_invalid"


def test_a_shape_beyond_the_tensor_data_is_refused(plain: bytes, rewritten: Any) -> None:
    shape = b"(K\x02K\x03t"  # (2, 3)
    larger = b"(J\x00\x00\x00\x40J\x00\x00\x00\x40t"

    def lie(content: bytes) -> bytes:
        assert content.count(shape) == 1
        return content.replace(shape, larger)

    assert _code(rewritten(plain, {"data.pkl": lie})) == "model_invalid"


def test_a_zip_bomb_is_refused_unopened(plain: bytes) -> None:
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        zipfile.ZipFile(io.BytesIO(plain)) as old,
    ):
        for name in old.namelist():
            archive.writestr(name, old.read(name))
        with archive.open(f"{old.namelist()[0].partition('/')[0]}/data/bomb", "w") as file:
            for _ in range(256):
                file.write(bytes(1 << 20))
    assert len(buffer.getvalue()) < 2 << 20
    assert _code(buffer.getvalue()) == "model_too_large"


def test_a_member_larger_than_it_says_is_refused(plain: bytes) -> None:
    data = bytearray(plain)
    position = data.rfind(b"PK\x01\x02")
    while data[position + 46 : position + 46 + 100].find(b"data/0") < 0:
        position = data.rfind(b"PK\x01\x02", 0, position)
    size = struct.unpack_from("<I", data, position + 24)[0]
    struct.pack_into("<I", data, position + 24, size - 4)
    assert _code(bytes(data)) == "model_invalid"


NAMES = ["../data/0", "/etc/passwd", "archive/../../x", "archive/a\\b", "archive//x", "archive/./x", "other/x", "lone"]


@pytest.mark.parametrize("name", NAMES)
def test_a_member_outside_the_folder_is_refused(name: str, plain: bytes) -> None:
    buffer = io.BytesIO(plain)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(name, b"x")
    assert _code(buffer.getvalue()) == "model_invalid"


def test_two_members_of_one_name_are_refused(plain: bytes) -> None:
    buffer = io.BytesIO(plain)
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "a") as archive:
        warnings.simplefilter("ignore")
        archive.writestr(archive.namelist()[0], b"x")
    assert _code(buffer.getvalue()) == "model_invalid"


def test_an_archive_cut_anywhere_is_refused(plain: bytes) -> None:
    for length in range(40, len(plain), len(plain) // 20):
        assert _code(plain[:length]) in ("model_unrecognized", "model_invalid")


def test_a_changed_byte_never_crashes(plain: bytes) -> None:
    codes = set()
    for position in range(30, len(plain), 37):
        data = bytearray(plain)
        data[position] ^= 0x55
        try:
            codes.add(load_model(bytes(data)).format)
        except ModelError as error:
            codes.add(error.code)
    assert {"torchscript", "model_invalid"} <= codes


def test_torch_gets_only_members_that_were_checked(plain: bytes, rewritten: Any) -> None:
    data = rewritten(plain, {"extra/notes": b"x", "code/more.py.debug_pkl": b"x", "bytecode.pkl": b"x", "data/9": b""})
    with zipfile.ZipFile(io.BytesIO(checked_archive(data))) as archive:
        names = {name.partition("/")[2] for name in archive.namelist()}
    assert {"data.pkl", "constants.pkl", "version", "data/0"} <= names
    assert not any(name.startswith("extra/") or name.endswith((".debug_pkl", "bytecode.pkl")) for name in names)


def test_a_module_saved_for_mobile_is_refused_with_advice(plain: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        saved = torch.jit.load(io.BytesIO(plain))._save_to_buffer_for_lite_interpreter()
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            if "/code/" not in name:
                new.writestr(name, old.read(name))
    assert _code(buffer.getvalue()) == "torchscript_mobile_refused"


@pytest.mark.parametrize("members", [{"code/__torch__.py": b"\xff"}, {"code/__torch__.py": b"import os\n"}])
def test_code_that_is_no_torchscript_is_refused(members: dict[str, bytes], plain: bytes, rewritten: Any) -> None:
    assert _code(rewritten(plain, members)) == "model_invalid"


def test_weights_that_are_not_finite_are_named(scripted: Any) -> None:
    module = nn.Sequential(nn.Linear(3, 2))
    module[0].weight.data[0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"0\.weight") as caught:
        load_model(scripted(module))
    assert caught.value.code == "model_not_finite"
