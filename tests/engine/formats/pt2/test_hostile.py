"""Archives that torch would not write: each is refused with its code, before work or memory is spent on it."""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from support.forms import crossed, full
from support.pt2 import CONSTANTS, PROGRAM, WEIGHTS, Change, edited, exported, rewritten
from torch import Tensor, nn

import wsb_engine as wsb
from wsb_engine import ModelError
from wsb_engine.formats.graph.limits import LIMITS
from wsb_engine.formats.pt2 import archive as archives
from wsb_engine.formats.pt2 import fields, translation, weights


@cache
def plain() -> bytes:
    torch.manual_seed(0)
    return exported(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3)), torch.zeros(2, 4))


def _payload(change: Callable[[Any], object]) -> dict[str, Change]:
    """Change what the configuration says of the first weight."""
    return {WEIGHTS: edited(lambda document: change(document["config"]["0.weight"]))}


def _meta(**fields: Any) -> dict[str, Change]:
    return _payload(lambda payload: payload["tensor_meta"].update(fields))


def _sizes(*sizes: int) -> list[dict[str, int]]:
    return [{"as_int": size} for size in sizes]


def _graph(change: Callable[[Any], object]) -> dict[str, Change]:
    return {PROGRAM: edited(lambda document: change(document["graph_module"]["graph"]))}


def _program(change: Callable[[Any], object]) -> dict[str, Change]:
    return {PROGRAM: edited(change)}


def _signature(change: Callable[[Any], object]) -> dict[str, Change]:
    return _program(lambda document: change(document["graph_module"]["signature"]))


def _out_spec(text: str) -> dict[str, Change]:
    return _program(
        lambda document: document["graph_module"]["module_call_graph"][0]["signature"].update(out_spec=text)
    )


def _many(graph: Any) -> None:
    source = [{"name": "self", "arg": {"as_tensor": {"name": "input"}}}]
    graph["nodes"] = [
        {
            "target": "torch.ops.aten.relu.default",
            "inputs": source,
            "outputs": [{"as_tensor": {"name": f"v{index}"}}],
            "metadata": {},
        }
        for index in range(LIMITS.nodes + 1)
    ]


def _as_buffers(signature: Any) -> None:
    for spec in signature["input_specs"]:
        if "parameter" in spec:
            given = spec.pop("parameter")
            spec["buffer"] = {**given, "buffer_name": given["parameter_name"], "persistent": True}


def _node(**fields: Any) -> dict[str, Change]:
    """Change the first node of the graph."""
    return _graph(lambda graph: graph["nodes"][0].update(fields))


def _argument(position: int, argument: Any) -> dict[str, Change]:
    return _graph(lambda graph: graph["nodes"][0]["inputs"][position].update(arg=argument))


_HIGHER = "torch.ops.higher_order."


def _wrapped(graph: Any) -> dict[str, Any]:
    """Return the fields of a node that computes a graph."""
    inputs = [{"name": "", "arg": {"as_bool": True}}, {"name": "", "arg": graph}]
    return {"target": f"{_HIGHER}wrap_with_set_grad_enabled", "inputs": inputs, "outputs": [], "metadata": {}}


def _nested(levels: int) -> dict[str, Any]:
    """Return an argument of graphs within graphs."""
    graph: dict[str, Any] = {"as_graph": {"name": "g", "graph": _empty([])}}
    for _ in range(levels):
        graph = {"as_graph": {"name": "g", "graph": _empty([_wrapped(graph)])}}
    return graph


def _empty(nodes: list[Any]) -> dict[str, Any]:
    return {"inputs": [], "outputs": [], "nodes": nodes, "tensor_values": {}}


_CHANGES: dict[str, tuple[dict[str, Change], str]] = {
    "weights as a pickle, as torch 2.8 writes them": ({"data/weights/model.pt": b"\x80\x02."}, "pt2_refused"),
    "a weight as a pickle": (_payload(lambda payload: payload.update(use_pickle=True)), "pt2_refused"),
    "a custom object": (
        {CONSTANTS: json.dumps({"config": {"o": {"path_name": "custom_obj_0", "is_param": False, "use_pickle": True,
                                                 "tensor_meta": None}}}).encode()},
        "pt2_refused",
    ),
    "several programs": ({"models/other.json": b"{}"}, "pt2_several_programs"),
    "a later schema": (_program(lambda parsed: parsed["schema_version"].update(major=9)), "pt2_version_unsupported"),
    "no configuration of the weights": ({WEIGHTS: None}, "model_invalid"),
    "a weight without a file": ({"data/weights/weight_0": None}, "model_invalid"),
    "a weight outside its folder": (_payload(lambda payload: payload.update(path_name="../../m")), "model_invalid"),
    "a weight that is too short": ({"data/weights/weight_0": bytes(44)}, "model_invalid"),
    "a weight beyond its file": (_meta(storage_offset={"as_int": 2**62}), "model_invalid"),
    "a negative stride": (_meta(strides=_sizes(-4, 1)), "model_invalid"),
    "a negative size": (_meta(sizes=_sizes(3, -4)), "model_invalid"),
    "more sizes than strides": (_meta(sizes=_sizes(3, 2, 2)), "model_invalid"),
    "a symbolic size": (_meta(sizes=[{"as_expr": {"expr_str": "__import__('os')"}}, {"as_int": 4}]), "model_invalid"),
    "sizes that overflow beside a 0": (_meta(sizes=_sizes(0, 2**62, 2**62), strides=_sizes(1, 1, 1)), "model_invalid"),
    "a tensor of 2⁴⁰ equal elements": (_meta(sizes=_sizes(2**20, 2**20), strides=_sizes(0, 0)), "model_too_large"),
    "a tensor of 4 GB of equal elements": (_meta(sizes=_sizes(2**15, 2**15), strides=_sizes(0, 0)), "model_too_large"),
    "a tensor of 100 dimensions": (_meta(sizes=_sizes(*[1] * 100), strides=_sizes(*[1] * 100)), "model_too_complex"),
    "a sparse tensor": (_meta(layout=1), "unsupported_dtype"),
    "a complex tensor": (_meta(dtype=10), "unsupported_dtype"),
    "an unknown dtype": (_meta(dtype=10**30), "unsupported_dtype"),
    "a weight that is not a number": ({"data/weights/weight_0": b"\x00\x00\xc0\x7f" * 12}, "model_not_finite"),
    "an archive of another byte order": ({"byteorder": b"big"}, "model_invalid"),
    "a program that is not JSON": ({PROGRAM: b"\x80\x04N."}, "model_invalid"),
    "a program that is a list": ({PROGRAM: b"[]"}, "model_invalid"),
    "a program nested without end": ({PROGRAM: b"[" * 200_000}, "model_too_complex"),
    "an integer of 4000 digits": (_argument(0, {"as_int": 10**4000}), "model_invalid"),
    "an integer of 10,000 digits": ({PROGRAM: b'{"a": ' + b"9" * 10_000 + b"}"}, "model_invalid"),
    "a value that nothing makes": (_argument(0, {"as_tensor": {"name": "nothing"}}), "model_invalid"),
    "a value that is made later": (_argument(0, {"as_tensor": {"name": "linear_1"}}), "model_invalid"),
    "a value made twice": (_node(outputs=[{"as_tensor": {"name": "input"}}]), "model_invalid"),
    "a missing argument": (_node(inputs=[]), "model_invalid"),
    "an argument of two kinds": (_argument(0, {"as_int": 1, "as_none": True}), "model_invalid"),
    "an argument of an unknown kind": (_argument(0, {"as_pickle": "gASVAA=="}), "unsupported_operator"),
    "an object as an argument": (_argument(0, {"as_custom_obj": {"name": "o"}}), "unsupported_operator"),
    "a function of Python": (_node(target="os.system"), "unsupported_operator"),
    "an operator of another library": (_node(target="torch.ops.evil.run.default"), "unsupported_operator"),
    "an operator that opens a file": (_node(target="torch.ops.aten.from_file.default"), "unsupported_operator"),
    "no operator, but an attribute": (_node(target="torch.ops.aten.__class__.__init__"), "unsupported_operator"),
    "no overload, but an attribute": (_node(target="torch.ops.aten.relu.__call__"), "unsupported_operator"),
    "a loop": (_node(target=f"{_HIGHER}while_loop"), "unsupported_operator"),
    "a condition without branches": (_node(target=f"{_HIGHER}cond"), "unsupported_operator"),
    "graphs within graphs": (_node(**_wrapped(_nested(50))), "model_too_complex"),
    "more operators than the limit": (_graph(_many), "model_too_complex"),
    "a name of a megabyte": (_node(outputs=[{"as_tensor": {"name": "n" * 10**6}}]), "model_invalid"),
    "an output structure that is not JSON": (_out_spec("print()"), "model_invalid"),
    "more outputs than the structure has": (
        _signature(lambda signature: signature["output_specs"].append({"user_output": {"arg": {"as_none": True}}})),
        "model_invalid",
    ),
    "a parameter without a tensor": (
        _signature(lambda signature: signature["input_specs"][0]["parameter"].update(parameter_name="other")),
        "model_invalid",
    ),
    "a size as an input": (
        _signature(lambda signature: signature["input_specs"][-1]["user_input"].update(arg={"as_sym_int": {}})),
        "unsupported_input",
    ),
    "no parameters": (_signature(_as_buffers), "model_no_parameters"),
}  # fmt: skip


def _code(data: bytes | Path) -> str:
    with pytest.raises(ModelError) as caught:
        wsb.load_model(data).resolve()
    assert caught.value.advice
    assert len(str(caught.value)) < 2000
    return caught.value.code


@pytest.mark.parametrize(
    ("changes", "code"),
    [full(*case) if name == "more operators than the limit" else case for name, case in _CHANGES.items()],
    ids=_CHANGES.keys(),
)
def test_a_changed_archive_is_refused(changes: dict[str, Change], code: str) -> None:
    assert _code(rewritten(plain(), changes)) == code


def test_a_program_of_more_operators_than_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(translation, "LIMITS", replace(LIMITS, nodes=2))  # of three
    with pytest.raises(ModelError, match="operations, more than the limit of 2") as caught:
        wsb.load_model(plain())
    assert caught.value.code == "model_too_complex"


def test_a_weight_that_does_not_fit_is_refused_at_its_operator() -> None:
    changed = _meta(sizes=_sizes(4, 3), strides=_sizes(3, 1))
    model = wsb.load_model(rewritten(plain(), changed)).resolve()
    with pytest.raises(ModelError, match=r"aten::linear \(node 0 linear") as caught:
        model.function(model.parameters, {"input": torch.zeros(2, 4)})
    assert caught.value.code == "evaluation_failed"


def test_what_the_tests_change_loads_unchanged() -> None:
    assert wsb.load_model(rewritten(plain(), {})).resolve().head == "none"


def _zip(change: Callable[[zipfile.ZipFile], object]) -> bytes:
    """Return the archive with something done to it before its directory is written."""
    buffer = io.BytesIO(rewritten(plain(), {}))
    with zipfile.ZipFile(buffer, "a") as archive:
        change(archive)
    return buffer.getvalue()


def _shifted(archive: zipfile.ZipFile) -> None:
    archive.writestr("archive/extra/note", b"note")
    archive.getinfo("archive/data/weights/weight_0").header_offset = archive.getinfo("archive/extra/note").header_offset


def _claiming(archive: zipfile.ZipFile) -> None:
    archive.writestr("archive/extra/note", b"note")
    entry = archive.getinfo("archive/data/weights/weight_0")
    entry.file_size = entry.compress_size = 10**9


_ARCHIVES: dict[str, tuple[Callable[[zipfile.ZipFile], object], str]] = {
    "a name that leads out": (lambda archive: archive.writestr("archive/../../etc/passwd", b""), "model_invalid"),
    "an absolute name": (lambda archive: archive.writestr("/etc/passwd", b""), "model_invalid"),
    "a name with a backslash": (lambda archive: archive.writestr("archive/a\\b", b""), "model_invalid"),
    "a second folder": (lambda archive: archive.writestr("other/models/model.json", b"{}"), "model_invalid"),
    "a member in another's place": (_shifted, "model_invalid"),
    "a member beyond the file": (_claiming, "model_invalid"),
    "a bomb": (
        lambda archive: archive.writestr("archive/extra/zeros", bytes(10**7), compress_type=zipfile.ZIP_DEFLATED),
        "model_too_large",
    ),
    "a member compressed by another method": (
        lambda archive: archive.writestr("archive/extra/text", b"x" * 1000, compress_type=zipfile.ZIP_BZIP2),
        "model_invalid",
    ),
}


@pytest.mark.parametrize(("change", "code"), _ARCHIVES.values(), ids=_ARCHIVES.keys())
def test_a_changed_zip_file_is_refused(change: Callable[[zipfile.ZipFile], object], code: str) -> None:
    assert _code(_zip(change)) == code


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name_are_refused() -> None:
    assert _code(_zip(lambda archive: archive.writestr(f"archive/{PROGRAM}", b"{}"))) == "model_invalid"


def test_a_damaged_weight_is_refused(tmp_path: Path) -> None:
    data = bytearray(rewritten(plain(), {}))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        raw = archive.read("archive/data/weights/weight_0")
    data[data.index(raw)] ^= 1
    path = tmp_path / "model.pt2"
    path.write_bytes(data)
    assert _code(bytes(data)) == _code(path) == "model_invalid"


def test_a_compressed_archive_is_read() -> None:
    packed = rewritten(plain(), {}, compression=zipfile.ZIP_DEFLATED)
    found, expected = wsb.load_model(packed).parameters, wsb.load_model(plain()).parameters
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize("folder", ["a", "ab", "abc", "abcdefg"])
def test_a_weight_that_is_not_aligned_is_read(folder: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    path.write_bytes(rewritten(plain(), {}, folder=folder))
    expected = wsb.load_model(plain()).parameters
    for name, tensor in wsb.load_model(path).parameters.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0)


def _repeated(document: Any) -> None:
    """Three tensors of 2³¹ truth values, all of them one byte."""
    payload = next(iter(document["config"].values()))
    for index in range(3):
        meta = {**payload["tensor_meta"], "dtype": 12, "sizes": _sizes(2**31 - 1), "strides": _sizes(0)}
        document["config"][f"mask{index}"] = {**payload, "tensor_meta": meta}


def test_repeated_truth_values_take_no_memory() -> None:
    bomb = rewritten(plain(), {WEIGHTS: edited(_repeated)})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert _code(bomb) == "model_too_large"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10


def test_limits_are_checked_before_anything_is_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MEMBERS", 5)
    assert _code(plain()) == "model_too_complex"
    monkeypatch.undo()
    monkeypatch.setattr(fields, "JSON_BYTES", 1000)
    assert _code(plain()) == "model_too_large"
    monkeypatch.undo()
    monkeypatch.setattr(archives, "UNPACKED_BYTES", 1000)
    assert _code(rewritten(plain(), {}, compression=zipfile.ZIP_DEFLATED)) == "model_too_large"


class _Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("pickle-was-loaded",)


def test_no_pickle_of_the_archive_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trap = pickle.dumps(_Trap())
    wsb.load_model(rewritten(plain(), {"data/sample_inputs/model.pt": trap, "extra/note.pkl": trap})).resolve()
    assert list(tmp_path.iterdir()) == []


class _Shared(nn.Module):
    """Two parameters in one storage."""

    def __init__(self, second: slice) -> None:
        super().__init__()
        storage = torch.randn(9)
        self.first, self.second = nn.Parameter(storage[:6]), nn.Parameter(storage[second])

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.first.reshape(2, 3) + self.second[:3]


def test_parameters_that_overlap_are_refused() -> None:
    assert _code(exported(_Shared(slice(3, 9)), torch.zeros(2, 2))) == "pt2_overlapping_parameters"
    assert list(wsb.load_model(exported(_Shared(slice(6, 9)), torch.zeros(2, 2))).parameters) == ["first", "second"]
    assert weights.VIEWED_BYTES < 2**31


TRAINED: dict[str, nn.Module] = {
    "dropout": nn.Sequential(nn.Linear(4, 3), nn.Dropout()),
    "batch normalisation": nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)),
    "randomised leaky ReLU": nn.Sequential(nn.Linear(4, 3), nn.RReLU()),
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "decomposed"), crossed(TRAINED, [False, True]))
def test_a_program_in_training_mode_is_refused_and_the_advice_helps(name: str, decomposed: bool) -> None:
    module = TRAINED[name]
    with pytest.raises(ModelError) as caught:
        wsb.load_model(exported(module, torch.zeros(2, 4), train=True, decomposed=decomposed))
    if name == "dropout" or not decomposed:
        assert caught.value.code == "pt2_training_mode"
        assert "model.eval()" in str(caught.value.advice)
    assert wsb.load_model(exported(module, torch.zeros(2, 4))).resolve().head == "none"


def test_dropout_that_keeps_everything_is_read_in_training_mode() -> None:
    module = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.0))
    assert wsb.load_model(exported(module, torch.zeros(2, 4), train=True)).resolve().head == "none"


def test_parameters_without_gradients_in_forward_are_refused() -> None:
    class Hidden(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                scale = self.weight.norm()
            return super().forward(x) / scale

    with pytest.raises(ModelError, match="hides parameters from the derivative"):
        wsb.load_model(exported(Hidden(4, 3), torch.zeros(2, 4)))
