# ruff: noqa: E501 - a table, of which each line is one case
"""Archives whose code tries something: each is refused in a process of its own, soon, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.forms import thinned
from torch import Tensor, nn

import wsb_engine

SECONDS = 30
SERVER = """
import json, os, signal, sys
import numpy as np
import wsb_engine as wsb
import wsb_engine.analysis.analyze, wsb_engine.batch, wsb_engine.formats.torchscript

def analyse(path):
    try:
        classifier = wsb.load_model(path)
        batch = wsb.Batch(np.ones((4, 3)), np.array([0, 1, 0, 1]))
        wsb.analyze(classifier, batch, wsb.Options(moments="none", enclosure=False))
        return {"code": None}
    except wsb.EngineError as error:
        return {"code": error.code, "message": error.message, "advice": error.advice}

assert analyse(sys.argv[1]) == {"code": None}
for line in sys.stdin:
    folder, path, seconds = json.loads(line)
    child = os.fork()
    if child == 0:
        signal.alarm(seconds)
        os.chdir(folder)
        print(json.dumps(analyse(path)), flush=True)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status:
        print(json.dumps({"code": f"died with status {status}"}), flush=True)
"""
"""Analyses each file in a process of its own, forked so that torch is imported once; a signal ends one that hangs.

First it analyses a harmless file itself, for what is imported and compiled at first use.
"""


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(x))  # type: ignore[no-any-return]


RETURN = "    return (last).forward(torch.tanh(x), )"


def _in_forward(*lines: str) -> Callable[[str], str]:
    return lambda source: source.replace(RETURN, "\n".join(f"    {line}" for line in lines) + "\n" + RETURN)


def _signature(more: str) -> Callable[[str], str]:
    return lambda source: source.replace("x: Tensor)", f"x: Tensor, {more})")


def _attribute(line: str) -> Callable[[str], str]:
    return lambda source: source.replace("  training : bool\n", f"  training : bool\n  {line}\n", 1)


def _method(name: str, argument: str, *lines: str) -> Callable[[str], str]:
    body = "\n".join(f"    {line}" for line in lines)
    return lambda source: source + f"  def {name}(self: __torch__.{{plain}}{argument}:\n{body}\n"


def _functions(count: int, call: str) -> Callable[[str], str]:
    """f0 calls f1, which calls f2, …; forward calls f0."""
    body = "".join(
        f"def f{i}(x: Tensor) -> Tensor:\n  return {call.replace('NEXT', f'__torch__.{{module}}.f{i + 1}')}\n"
        for i in range(count)
    )
    last = f"def f{count}(x: Tensor) -> Tensor:\n  return torch.tanh(x)\n"
    return lambda source: (
        source.replace("(last).forward(torch.tanh(x), )", "(last).forward(__torch__.{module}.f0(x, ), )") + body + last
    )


USED = "x = torch.add(x, torch.sum(y))"
"""What is computed and not used, torch leaves out."""
LONG = 9223372036854775807
CASES: dict[str, tuple[Callable[[str], str], str]] = {
    "reading a file in forward": (
        _in_forward('y = torch.from_file("/etc/hostname", False, 3)', USED),
        "unsupported_operator",
    ),
    "writing a file in forward": (_in_forward('y = torch.from_file("{target}", True, 3)', USED), "unsupported_operator"),
    "saving in forward": (_in_forward('torch.save(x, "{target}")'), "unsupported_operator"),
    "saving a number in forward": (_in_forward('torch.save(5, "{target}")'), "unsupported_operator"),
    "writing a file in a default value": (
        _signature('y: Tensor=torch.from_file("{target}", True, 3)'),
        "torchscript_code_refused",
    ),
    "writing a file in a constant of a class": (
        _attribute('k : Final[Tensor] = torch.from_file("{target}", True, 3)'),
        "torchscript_code_refused",
    ),
    "writing a file in __setstate__": (
        _method("__setstate__", ", state: Tensor) -> NoneType", 'y = torch.from_file("{target}", True, 3)'),
        "torchscript_code_refused",
    ),
    "an endless loop in __setstate__": (
        _method("__setstate__", ", state: Tensor) -> NoneType", "while True:", "  pass"),
        "torchscript_code_refused",
    ),
    "__getstate__": (_method("__getstate__", ") -> int", "return 1"), "torchscript_code_refused"),
    "an endless loop in forward": (
        _in_forward("y = x", "while True:", "  y0 = torch.tanh(y)", "  y = y0"),
        "model_too_complex",
    ),
    "an endless loop of nothing": (_in_forward("while True:", "  pass"), "model_too_complex"),
    "a loop of 2⁶³ rounds": (
        _in_forward("n = 0", f"for i in range({LONG}):", "  n0 = torch.add(n, i)", "  n = n0"),
        "model_too_complex",
    ),
    "a loop as long as the batch": (
        _in_forward("n = 0", "for i in range(torch.mul(torch.size(x, 0), 1000000000)):", "  n0 = torch.add(n, i)", "  n = n0", "x = torch.add(x, n)"),
        "model_too_complex",
    ),
    "a loop over values": (
        _in_forward("y = x", "while bool(torch.gt(torch.sum(y), 0)):", "  y0 = torch.tanh(y)", "  y = y0"),
        "data_dependent_control_flow",
    ),
    "a string that doubles": (
        _in_forward('s = "abcdefgh"', "for i in range(60):", "  s0 = torch.add(s, s)", "  s = s0"),
        "model_too_complex",
    ),
    "a number that squares": (
        _in_forward("n = 3", "for i in range(60):", "  n0 = torch.mul(n, n)", "  n = n0"),
        "model_too_complex",
    ),
    "a list of 10¹⁰ items": (_in_forward("l = torch.mul([1, 2], 10000000000)", "x = torch.add(x, torch.len(l))"), "model_too_complex"),
    "lists 2000 deep": (
        _in_forward("l0 = [x]", *(f"l{i + 1} = [l{i}]" for i in range(2000)), "x = torch.add(x, torch.len(l2000))"),
        "model_too_complex",
    ),
    "a tensor of 40 GB": (_in_forward("y = torch.zeros([100000, 100000])", USED), "tensor_too_large"),
    "a tensor that grows with the batch": (
        _in_forward("y = torch.expand(torch.unsqueeze(x, 0), [4000000000, -1, -1])", USED),
        "tensor_too_large",
    ),
    "an object of torch.classes": (
        _attribute("engine : __torch__.torch.classes.backends.Engine"),
        "torchscript_code_refused",
    ),
    "a module lowered to a backend": (_attribute("lowered : __torch__.torch.classes.__backends__.nnapi"), "torchscript_code_refused"),
    "brackets 30 000 deep": (_in_forward("y = " + "(" * 30_000 + "x" + ")" * 30_000), "model_too_complex"),
    "calls 30 000 deep": (_in_forward("y = " + "torch.tanh(" * 30_000 + "x" + ")" * 30_000), "model_too_complex"),
    "a sum of 30 000 terms": (_in_forward("y = x" + " + x" * 30_000), "model_too_complex"),
    "a chain of 30 000 methods": (_in_forward("y = x" + ".tanh()" * 30_000), "model_too_complex"),
    "blocks 5000 deep": (
        _in_forward("y = x", *(" " * i + "if True:" for i in range(5_000)), " " * 5_000 + "y = x"),
        "model_too_complex",
    ),
    "3000 functions that call each other": (_functions(3000, "NEXT(x, )"), "model_too_complex"),
    "2⁴⁰ operators once inlined": (_functions(40, "NEXT(NEXT(x, ), )"), "model_too_complex"),
    "functions called through a name": (
        _in_forward("f = getattr(__torch__, \"f0\")", "y = f(x)"),
        "model_invalid",
    ),
    "a string in three quotes": (_in_forward('y = """x"""'), "model_invalid"),
    "a comment": (_in_forward("y = x # x"), "model_invalid"),
    "two statements in a line": (_in_forward("y = x; z = x"), "model_invalid"),
    "a function within a function": (_in_forward("def f(x: Tensor) -> Tensor:", "  return x"), "model_invalid"),
    "code that does not compile": (_in_forward("y = nowhere"), "model_invalid"),
    "an exception on every path": (_in_forward('ops.prim.RaiseException("no", "builtins.ValueError")'), "evaluation_failed"),
    "state that is written": (_in_forward("self.training = True"), "unsupported_operator"),
    "random numbers": (_in_forward("y = torch.rand_like(x)", USED), "unsupported_operator"),
}  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    # A pool of threads would not come along into a fork.
    environment = os.environ | {"PYTHONPATH": str(Path(wsb_engine.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    harmless = tmp_path_factory.mktemp("harmless") / "model.pt"
    torch.jit.script(Plain().eval()).save(harmless)
    command = [sys.executable, "-c", SERVER, str(harmless)]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(SECONDS) == 0


@pytest.fixture
def attempt(
    server: subprocess.Popen[str], scripted: Any, rewritten: Any, tmp_path: Path
) -> Callable[[Callable[[str], str]], dict[str, Any]]:
    """Analyses a module with changed code, in a process of its own and an empty folder."""

    def run(change: Callable[[str], str]) -> dict[str, Any]:
        folder, path = tmp_path / "work", tmp_path / "model.pt"
        folder.mkdir()
        torch.manual_seed(0)
        module = Plain.__module__
        names = {"target": str(folder / "written"), "plain": f"{module}.Plain", "module": module}

        def changed(content: bytes) -> bytes:
            source = content.decode()
            made = change(source)
            assert made != source
            for key, value in names.items():
                made = made.replace("{" + key + "}", value)
            return made.encode()

        path.write_bytes(rewritten(scripted(Plain()), {f"code/__torch__/{module.replace('.', '/')}.py": changed}))
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(json.dumps([str(folder), str(path), SECONDS]) + "\n")
        server.stdin.flush()
        outcome = json.loads(server.stdout.readline())
        assert list(folder.iterdir()) == []
        return outcome  # type: ignore[no-any-return]

    return run


@pytest.mark.parametrize("name", thinned(CASES, 10))
def test_hostile_code_is_refused_and_writes_nothing(name: str, attempt: Any) -> None:
    change, code = CASES[name]
    outcome = attempt(change)
    assert outcome["code"] == code, outcome
    assert outcome["advice"]


def test_an_operator_that_is_refused_is_named_with_its_place(attempt: Any) -> None:
    outcome = attempt(CASES["writing a file in forward"][0])
    assert "aten::from_file" in outcome["message"]
    assert "line" in outcome["message"]
    assert "ONNX" in outcome["advice"]


def test_code_that_is_never_reached_does_not_matter(attempt: Any) -> None:
    change = _in_forward(
        "if torch.gt(torch.dim(x), 5):", '  y = torch.from_file("{target}", True, 3)', "else:", "  pass"
    )
    assert attempt(change)["code"] is None
