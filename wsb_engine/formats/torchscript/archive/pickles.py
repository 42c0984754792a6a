"""What the pickles in a TorchScript archive may hold, checked before torch reads them.

torch's own reader builds numbers, strings, containers, tensors and objects of the
classes in the archive. The check follows the opcodes without building anything: only those that torch writes, only
the globals that it knows, containers nested no deeper than its destructors can follow, and tensors no larger than
the bytes behind them.
"""

from __future__ import annotations

import math
import pickletools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wsb_engine.formats.torchscript import problems

OPCODES = 5_000_000
NESTING = 200
STRING_BYTES = 1 << 24

_GLOBALS = frozenset(
    {
        "collections OrderedDict",
        "torch device",
        "torch._utils _rebuild_tensor_v2",
        *(
            f"torch.jit._pickle {name}"
            for name in ("build_boollist", "build_doublelist", "build_intlist", "build_tensorlist", "restore_type_tag")
        ),
    }
)
_ITEM_BYTES = {
    **dict.fromkeys(("BoolStorage", "ByteStorage", "CharStorage"), 1),
    **dict.fromkeys(("HalfStorage", "BFloat16Storage", "ShortStorage"), 2),
    **dict.fromkeys(("FloatStorage", "IntStorage"), 4),
    **dict.fromkeys(("DoubleStorage", "LongStorage"), 8),
}
_OWN_CLASS = re.compile(r"__torch__(?:\.[A-Za-z_][A-Za-z0-9_]*)* [A-Za-z_][A-Za-z0-9_]*")
_NUMBERS = frozenset({"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "NONE", "NEWTRUE", "NEWFALSE"})
_EMPTY = frozenset({"EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT"})
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_GROWING = {"APPEND": 1, "SETITEM": 2, "BUILD": 1}
_PERSISTENT = ("storage", "type", "key", "location", "elements")


@dataclass(eq=False)
class _Item:
    """A value on the reader's stack, by no more than the check needs."""

    depth: int = 0
    value: Any = None
    """A number, a string, a tuple of items, or a global's name."""
    inside: bool = False
    """Whether another container holds it; it must not grow any more then."""


_MARK = _Item(value="mark")


def check_pickle(name: str, data: bytes, records: Mapping[str, int]) -> None:
    """Reject a pickle that is not as torch.jit.save writes it.

    Args:
        name: The file's name within the archive, for messages.
        data: The pickle.
        records: Key of each tensor's bytes → how many there are.

    Raises:
        ModelError: ``torchscript_code_refused`` for a global, ``model_too_complex``, ``model_invalid``.
    """
    machine = _Machine(name, records)
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if count > OPCODES:
                raise problems.too_complex(f"steps in {name}", count, OPCODES)
            machine.step(opcode.name, argument)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        raise problems.invalid(f"{name} is damaged: {error}") from error


class _Machine:
    def __init__(self, name: str, records: Mapping[str, int]) -> None:
        self.name = name
        self.records = records
        self.stack: list[_Item] = []
        self.memo: dict[int, _Item] = {}

    def step(self, opcode: str, argument: Any) -> None:
        if opcode in _NUMBERS:
            self.stack.append(_Item(value=argument))
        elif opcode == "BINUNICODE":
            self._string(argument)
        elif opcode == "GLOBAL":
            self._global(argument)
        elif opcode == "MARK":
            self.stack.append(_MARK)
        elif opcode in _EMPTY:
            self.stack.append(_Item(depth=1, value=()))
        elif opcode == "TUPLE":
            self._tuple(self._to_mark())
        elif opcode in _TUPLES:
            self._tuple([self.stack.pop() for _ in range(_TUPLES[opcode])][::-1])
        elif opcode in _GROWING:
            self._grow([self.stack.pop() for _ in range(_GROWING[opcode])])
        elif opcode in ("APPENDS", "SETITEMS"):
            self._grow(self._to_mark())
        elif opcode in ("NEWOBJ", "REDUCE"):
            self._call(opcode)
        elif opcode == "BINPERSID":
            self._storage(self.stack.pop())
        elif opcode in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif opcode in ("BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif opcode == "POP":
            self.stack.pop()
        elif opcode not in ("PROTO", "STOP"):
            raise problems.refused(f"{self.name} has a pickle opcode {opcode}, which torch.jit.save never writes")

    def _to_mark(self) -> list[_Item]:
        items = []
        while (item := self.stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def _string(self, text: str) -> None:
        problems.limit(f"characters in a string of {self.name}", len(text), STRING_BYTES)
        depth = deepest = 0
        for character in re.findall(r"[\[\]]", text):  # type names, which torch parses by recursion
            depth += 1 if character == "[" else -1
            deepest = max(deepest, depth)
        self._check_depth(deepest)
        self.stack.append(_Item(value=text))

    def _global(self, name: str) -> None:
        if name.startswith("__torch__.torch.classes"):
            raise problems.refused(f"{self.name} holds an object of torch.classes (a custom or backend-lowered class)")
        module, _, kind = name.partition(" ")
        storage = module == "torch" and kind in _ITEM_BYTES
        if name not in _GLOBALS and not storage and not _OWN_CLASS.fullmatch(name):
            raise problems.refused(f"{self.name} refers to {name!r}, which no TorchScript module needs", name=name)
        self.stack.append(_Item(value=name))

    def _check_depth(self, depth: int) -> None:
        problems.limit(f"levels of nested values in {self.name}", depth, NESTING)

    def _hold(self, items: list[_Item]) -> int:
        for item in items:
            item.inside = True
        depth = 1 + max((item.depth for item in items), default=0)
        self._check_depth(depth)
        return depth

    def _tuple(self, items: list[_Item]) -> None:
        self.stack.append(_Item(depth=self._hold(items), value=tuple(items)))

    def _grow(self, items: list[_Item]) -> None:
        target = self.stack[-1]
        if target.inside:
            raise problems.invalid(f"{self.name} changes a container after it was put into another one")
        target.depth = max(target.depth, self._hold(items))

    def _call(self, opcode: str) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if opcode == "REDUCE" and function.value == "torch._utils _rebuild_tensor_v2":
            self._check_tensor(arguments)
        self.stack.append(_Item(depth=self._hold([arguments])))

    def _storage(self, identifier: _Item) -> None:
        found = dict(zip(_PERSISTENT, (item.value for item in identifier.value), strict=True))
        elements, kind = found["elements"], str(found["type"]).removeprefix("torch ")
        expected = elements * _ITEM_BYTES[kind]
        actual = self.records[found["key"]]
        if found["storage"] != "storage" or elements < 0 or actual != expected:
            raise problems.invalid(
                f"{self.name}: tensor data {found['key']!r} should have {expected} bytes and has {actual}",
                expected=expected,
                found=actual,
            )
        self.stack.append(_Item(value=("elements", elements)))

    def _check_tensor(self, arguments: _Item) -> None:
        """Reject a tensor whose shape and strides reach past its storage."""
        storage, offset, size, strides = (item.value for item in arguments.value[:4])
        shape = [item.value for item in size]
        steps = [item.value for item in strides]
        if not isinstance(storage, tuple) or storage[0] != "elements" or offset < 0 or min([0, *shape, *steps]) < 0:
            raise problems.invalid(f"{self.name} has a tensor that is not as torch.jit.save writes it")
        last = offset + sum((n - 1) * step for n, step in zip(shape, steps, strict=True))
        if math.prod(shape) and last >= storage[1]:
            raise problems.invalid(
                f"{self.name}: a tensor of shape {shape} reaches element {last} of {storage[1]}", shape=shape
            )
