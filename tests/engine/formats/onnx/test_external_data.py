"""Models that keep their data in further files: read beside the model, mapped, and never followed out of its folder."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from onnx.helper import make_node as node
from support.exports import share_operators
from support.forms import full

import wsb_engine as wsb
from wsb_engine.formats.digest import File, model_digest
from wsb_engine.formats.load import external_files, load_model

RNG = np.random.default_rng(0)
W = RNG.normal(size=(4, 3)).astype(np.float32)
B = RNG.normal(size=3).astype(np.float32)
DATA = W.tobytes() + bytes(16) + B.tobytes()
X = RNG.normal(size=(6, 4)).astype(np.float32)


def tensor(name: str, dims: Any, **entries: Any) -> TensorProto:
    made = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, value in ({"location": "m.data"} | entries).items():
        if value is not None:
            made.external_data.add(key=key, value=str(value))
    return made


def model(
    *tensors: TensorProto, change: Callable[[onnx.ModelProto], object] | None = None, folder: Path | None = None
) -> bytes:
    """x W + b with the tensors as initialisers, written to ``folder`` with its data if there is one."""
    tensors = tensors or (tensor("w", [4, 3], offset=0, length=48), tensor("b", [3], offset=64, length=12))
    graph = helper.make_graph(
        [node("Gemm", ["x", "w", "b"], ["z"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [onnx.ValueInfoProto(name="z")],
        list(tensors),
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if change is not None:
        change(made)
    if folder is not None:
        (folder / "m.onnx").write_bytes(made.SerializeToString())
        (folder / "m.data").write_bytes(DATA)
    return made.SerializeToString()


def weight(**entries: Any) -> Callable[[Path], object]:
    """A model whose weight has these entries."""
    return lambda folder: model(tensor("w", [4, 3], **entries), tensor("b", [3], offset=64, length=12), folder=folder)


def refusal(path: Path, **options: Any) -> wsb.ModelError:
    with pytest.raises(wsb.ModelError) as caught:
        load_model(path, **options)
    assert caught.value.advice
    assert len(str(caught.value)) < 4000
    return caught.value


def test_the_data_beside_a_model_are_read(tmp_path: Path) -> None:
    model(folder=tmp_path)
    classifier = load_model(tmp_path / "m.onnx")
    assert (classifier.parameters["w"].numpy() == W).all()
    assert (classifier.parameters["b"].numpy() == B).all()
    resolved = classifier.resolve()
    assert resolved.mlp is not None
    assert resolved.reference is not None
    np.testing.assert_allclose(resolved.reference({"x": X}), X @ W + B, rtol=1e-5)


def test_a_folder_can_be_named_for_a_path_and_for_bytes(tmp_path: Path) -> None:
    data, other = model(folder=tmp_path), tmp_path / "other"
    other.mkdir()
    (tmp_path / "m.data").rename(other / "m.data")
    assert refusal(tmp_path / "m.onnx").code == "external_data_missing"
    found = [
        load_model(source, external_data=other) for source in (tmp_path / "m.onnx", str(tmp_path / "m.onnx"), data)
    ]
    assert len({each.sha256 for each in found}) == 1
    assert external_files(tmp_path / "m.onnx", external_data=other) == {"m.data": other / "m.data"}


def test_the_digest_covers_all_files_and_no_name_of_the_model(tmp_path: Path) -> None:
    data = model(folder=tmp_path)
    expected = model_digest(
        (len(data), hashlib.sha256(data).hexdigest()),
        {"m.data": File(len(DATA), hashlib.sha256(DATA).hexdigest())},
    )
    assert load_model(tmp_path / "m.onnx").sha256 == expected
    (tmp_path / "m.onnx").rename(tmp_path / "renamed.onnx")
    assert load_model(tmp_path / "renamed.onnx").sha256 == expected
    (tmp_path / "m.data").write_bytes(DATA + b"!")
    assert load_model(tmp_path / "renamed.onnx").sha256 != expected


def test_the_files_of_a_model_are_listed(tmp_path: Path) -> None:
    model(folder=tmp_path)
    assert external_files(tmp_path / "m.onnx") == {"m.data": tmp_path / "m.data"}
    one = onnx.load(tmp_path / "m.onnx")
    onnx.save_model(one, tmp_path / "one.onnx")
    assert external_files(tmp_path / "one.onnx") == {}
    (tmp_path / "m.data").unlink()
    with pytest.raises(wsb.ModelError) as caught:
        external_files(tmp_path / "m.onnx")
    assert caught.value.code == "external_data_missing"


def test_missing_files_are_all_named(tmp_path: Path) -> None:
    model(tensor("w", [4, 3], location="sub/one.bin"), tensor("b", [3], location="two.bin"), folder=tmp_path)
    error = refusal(tmp_path / "m.onnx")
    assert error.code == "external_data_missing"
    assert error.details == {"missing": ["sub/one.bin", "two.bin"], "count": 2}
    assert "sub/one.bin, two.bin" in error.message
    assert "external_data=False" in error.advice
    assert "model_data=@sub/one.bin" in error.advice


def test_of_many_missing_files_a_bounded_number_is_named(tmp_path: Path) -> None:
    model(*[tensor(f"t{i}", [1], location=f"{i:04}" + "n" * 190) for i in range(500)], folder=tmp_path)
    error = refusal(tmp_path / "m.onnx")
    assert (error.details["count"], len(error.details["missing"])) == (500, 100)
    assert len(error.message) < 3000


@pytest.mark.parametrize("name", ["a'; rm -rf ~ #.bin", "$(id).bin", "a;type=x", "-o", "ü.bin"])
def test_no_command_is_advised_with_a_name_that_a_shell_reads(name: str, tmp_path: Path) -> None:
    weight(location=name)(tmp_path)
    error = refusal(tmp_path / "m.onnx")
    assert error.code == "external_data_missing"
    assert name not in error.advice


@pytest.mark.parametrize(
    ("location", "file"), [("./m.data", "m.data"), ("a/b/m.data", "a/b/m.data"), ("a//m.data", "a/m.data")]
)
def test_plain_paths_within_the_folder_are_followed(location: str, file: str, tmp_path: Path) -> None:
    weight(location=location, offset=0)(tmp_path)
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_bytes(DATA)
    assert (load_model(tmp_path / "m.onnx").parameters["w"].numpy() == W).all()
    assert set(external_files(tmp_path / "m.onnx")) == {file, "m.data"}


def test_a_folder_and_a_model_that_are_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    model(folder=tmp_path / "real")
    (tmp_path / "link").symlink_to("real")
    assert load_model(tmp_path / "link" / "m.onnx").sha256 == load_model(tmp_path / "real" / "m.onnx").sha256


def test_an_odd_offset_is_read_right(tmp_path: Path) -> None:
    weight(offset=3, length=48)(tmp_path)
    (tmp_path / "m.data").write_bytes(b"abc" + W.tobytes() + bytes(13) + B.tobytes())
    assert (load_model(tmp_path / "m.onnx").parameters["w"].numpy() == W).all()


def test_two_tensors_may_share_a_range(tmp_path: Path) -> None:
    nodes = [node("MatMul", ["x", "w"], ["h"]), node("MatMul", ["h", "v"], ["z"])]
    shared = [tensor(name, [4, 4], offset=0, length=64) for name in ("w", "v")]

    def change(made: onnx.ModelProto) -> None:
        del made.graph.node[:]
        made.graph.node.extend(nodes)

    model(*shared, change=change, folder=tmp_path)
    parameters = load_model(tmp_path / "m.onnx").parameters
    assert (parameters["w"] == parameters["v"]).all()


def test_entries_of_a_tensor_with_its_data_within_mean_nothing(tmp_path: Path) -> None:
    inner = onnx.numpy_helper.from_array(W, "w")
    inner.external_data.add(key="location", value="/etc/passwd")
    model(inner, tensor("b", [3], offset=64), folder=tmp_path)
    assert (load_model(tmp_path / "m.onnx").parameters["w"].numpy() == W).all()


def test_writing_to_a_parameter_leaves_the_file_as_it_is(tmp_path: Path) -> None:
    model(folder=tmp_path)
    load_model(tmp_path / "m.onnx").parameters["w"].zero_()
    assert (tmp_path / "m.data").read_bytes() == DATA


def in_place(make: Callable[[Path], object]) -> Callable[[Path], object]:
    """A good model, whose data file something else is in place of."""

    def prepare(folder: Path) -> None:
        model(folder=folder)
        (folder / "m.data").unlink()
        make(folder / "m.data")

    return prepare


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


def linked_folder(folder: Path) -> None:
    weight(location="sub/m.data")(folder)
    (folder / "real").mkdir()
    (folder / "real" / "m.data").write_bytes(DATA)
    (folder / "sub").symlink_to("real")


def twice(folder: Path) -> None:
    made = tensor("w", [4, 3], offset=0)
    made.external_data.add(key="offset", value="16")
    model(made, tensor("b", [3], offset=64), folder=folder)


def twofold(folder: Path) -> None:
    made = tensor("w", [4, 3], offset=0)
    made.raw_data = W.tobytes()
    model(made, tensor("b", [3], offset=64), folder=folder)


def twofold_typed(folder: Path) -> None:
    made = tensor("w", [4, 3], offset=0)
    made.float_data.extend(W.reshape(-1).tolist())
    model(made, tensor("b", [3], offset=64), folder=folder)


def not_text(folder: Path) -> None:
    data = weight(location="some-name.data")(folder)
    assert isinstance(data, bytes)
    (folder / "m.onnx").write_bytes(data.replace(b"some-name", b"some\xffname"))


def unaligned_types(folder: Path) -> None:
    """One range as numbers of two types."""
    other = tensor("b", [6], offset=0, length=48)
    other.data_type = TensorProto.DOUBLE
    model(tensor("w", [4, 3], offset=0, length=48), other, folder=folder)


def shapes(*dims: int) -> Callable[[Path], object]:
    return lambda folder: model(tensor("w", dims), tensor("b", [3], offset=64), folder=folder)


HOSTILE: dict[str, tuple[Callable[[Path], object], str, str | None]] = {
    "a parent": (weight(location="../m.data"), "external_data_refused", "parent"),
    "a parent further in": (weight(location="sub/../../m.data"), "external_data_refused", "parent"),
    "a parent that leads back": (weight(location="sub/../m.data"), "external_data_refused", "parent"),
    "an absolute path": (weight(location="/etc/passwd"), "external_data_refused", "absolute"),
    "two slashes": (weight(location="//etc/passwd"), "external_data_refused", "absolute"),
    "a path of Windows": (weight(location="..\\m.data"), "external_data_refused", "separator"),
    "a drive": (weight(location="C:m.data"), "external_data_refused", "separator"),
    "no location": (weight(location=None), "external_data_refused", "no_location"),
    "an empty location": (weight(location=""), "external_data_refused", "no_location"),
    "a dot": (weight(location="."), "external_data_refused", "no_location"),
    "NUL in a location": (weight(location="m.data\0.txt"), "external_data_refused", "name"),
    "a line break in a location": (weight(location="m.data\nmodel 1 00"), "external_data_refused", "name"),
    "a very long location": (weight(location="a/" * 100_000), "external_data_refused", "name"),
    "a component that no file system has": (weight(location="a" * 3000), "external_data_refused", "unreadable"),
    "a location that is not text": (not_text, "model_invalid", None),
    "the model itself": (weight(location="m.onnx", offset=0), "external_data_refused", "own_file"),
    "a file as a folder": (weight(location="m.data/x"), "external_data_refused", "kind"),
    "a link": (in_place(lambda path: path.symlink_to("/etc/passwd")), "external_data_refused", "link"),
    "a link to a device": (in_place(lambda path: path.symlink_to("/dev/zero")), "external_data_refused", "link"),
    "a link to nothing": (in_place(lambda path: path.symlink_to("nowhere")), "external_data_refused", "link"),
    "a folder that is a link": (linked_folder, "external_data_refused", "link"),
    "a pipe": (in_place(lambda path: os.mkfifo(path)), "external_data_refused", "kind"),
    "a folder": (in_place(lambda path: path.mkdir()), "external_data_refused", "kind"),
    "a sparse file of a terabyte": (in_place(sparse), "model_too_large", None),
    "an empty file": (in_place(lambda path: path.touch()), "external_data_refused", "beyond_end"),
    "a file cut short": (
        in_place(lambda path: path.write_bytes(DATA[:-1])),
        "external_data_refused",
        "beyond_end",
    ),
    "an offset beyond the end": (weight(offset=4096, length=48), "external_data_refused", "beyond_end"),
    "an offset near 2⁶⁴": (weight(offset=2**63 - 8, length=48), "external_data_refused", "beyond_end"),
    "an offset past all numbers": (weight(offset=10**30), "external_data_refused", "offset"),
    "a negative offset": (weight(offset=-8), "external_data_refused", "offset"),
    "an offset with an exponent": (weight(offset="1e3"), "external_data_refused", "offset"),
    "an offset in hexadecimal": (weight(offset="0x10"), "external_data_refused", "offset"),
    "an offset in other digits": (weight(offset="١"), "external_data_refused", "offset"),
    "an offset with a space": (weight(offset=" 0"), "external_data_refused", "offset"),
    "an empty offset": (weight(offset=""), "external_data_refused", "offset"),
    "a negative length": (weight(length=-48), "external_data_refused", "length"),
    "a length of another shape": (weight(length=44), "external_data_refused", "length"),
    "a length past all numbers": (weight(length="9" * 5000), "external_data_refused", "length"),
    "a key twice": (twice, "external_data_refused", "duplicate"),
    "data within as well": (twofold, "external_data_refused", "twofold"),
    "typed data within as well": (twofold_typed, "external_data_refused", "twofold"),
    "ranges that overlap": (weight(offset=20, length=48), "external_data_refused", "overlap"),
    "a range within another": (
        lambda folder: model(tensor("w", [4, 3], offset=0), tensor("b", [3], offset=4), folder=folder),
        "external_data_refused",
        "overlap",
    ),
    "a range of two types": (unaligned_types, "external_data_refused", "overlap"),
    "a product of sizes that overflows": (shapes(2**32, 2**32), "tensor_too_large", None),
    "a negative size": (shapes(-4, -3), "model_invalid", None),
    "an absurd rank": (shapes(*[1] * 1000), "model_too_complex", None),
    "a tensor of a gigabyte": (shapes(2**14, 2**14), "external_data_refused", "beyond_end"),
}


@pytest.mark.parametrize(("prepare", "code", "reason"), HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_external_data_are_refused(
    prepare: Callable[[Path], object], code: str, reason: str | None, tmp_path: Path
) -> None:
    prepare(tmp_path)
    error = refusal(tmp_path / "m.onnx")
    assert (error.code, error.details.get("reason")) == (code, reason)
    with pytest.raises(wsb.ModelError) as caught:
        external_files(tmp_path / "m.onnx")
    assert caught.value.code == code


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes devices")
def test_a_device_is_refused_unopened(tmp_path: Path) -> None:
    def make(path: Path) -> None:
        try:
            os.mknod(path, 0o600 | 0o020000, os.makedev(1, 5))
        except PermissionError:
            path.mkdir()  # where a container forbids devices, something else that is no regular file

    in_place(make)(tmp_path)
    assert refusal(tmp_path / "m.onnx").details["reason"] == "kind"


def test_tensors_that_share_data_count_each(tmp_path: Path) -> None:
    model(*[tensor(f"t{i}", [1024], offset=0, length=4096) for i in range(100)], folder=tmp_path)
    (tmp_path / "m.data").write_bytes(bytes(4096))
    error = refusal(tmp_path / "m.onnx", max_bytes=100_000)
    assert (error.code, error.details) == ("model_too_large", {"size": 409_600, "limit": 100_000})


PLACES: dict[str, Callable[[onnx.ModelProto], None]] = {
    "a constant": lambda m: put(
        m.graph.node.add(op_type="Constant", output=["c"]).attribute.add(name="value", type=4).t
    ),
    "a subgraph": lambda m: put(
        m.graph.node.add(op_type="If", output=["c"]).attribute.add(name="then_branch", type=5).g.initializer.add()
    ),
    "a list of tensors": lambda m: put(m.graph.node[0].attribute.add(name="t", type=9).tensors.add()),
    "a sparse initialiser": lambda m: put(m.graph.sparse_initializer.add().values),
    "a sparse attribute": lambda m: put(m.graph.node[0].attribute.add(name="s", type=11).sparse_tensor.indices),
    "a function": lambda m: put(
        m.functions.add(name="f").node.add(op_type="Constant").attribute.add(name="value", type=4).t
    ),
    "a default of a function": lambda m: put(m.functions.add(name="f").attribute_proto.add(name="v", type=4).t),
    "a training graph": lambda m: put(m.training_info.add().algorithm.initializer.add()),
}


def put(place: TensorProto) -> None:
    place.CopyFrom(tensor("t", [1], location="../secret"))


@pytest.mark.parametrize("change", PLACES.values(), ids=PLACES.keys())
def test_external_data_are_checked_wherever_they_hide(change: Callable[[Any], None], tmp_path: Path) -> None:
    model(change=change, folder=tmp_path)
    (tmp_path / "m.onnx").parent.joinpath("secret").write_bytes(bytes(64))
    assert refusal(tmp_path / "m.onnx").details["reason"] == "parent"


def test_external_data_of_constants_and_functions_are_read(tmp_path: Path) -> None:
    """The bias is a Constant's, the weight a function's."""
    function = helper.make_function(
        "own",
        "layer",
        ["a"],
        ["h"],
        [
            node("Constant", [], ["w"], value=tensor("", [4, 3], offset=0, length=48)),
            node("MatMul", ["a", "w"], ["h"]),
        ],
        [helper.make_opsetid("", 17)],
    )

    def change(made: onnx.ModelProto) -> None:
        del made.graph.node[:], made.graph.initializer[:]
        made.functions.append(function)
        made.opset_import.append(helper.make_opsetid("own", 1))
        made.graph.node.extend(
            [
                node("layer", ["x"], ["h"], domain="own"),
                node("Constant", [], ["b"], value=tensor("", [3], offset=64, length=12)),
                node("Add", ["h", "b"], ["z"]),
            ]
        )

    model(change=change, folder=tmp_path)
    resolved = load_model(tmp_path / "m.onnx").resolve()
    assert sum(each.numel() for each in resolved.parameters.values()) == 15
    assert resolved.reference is not None
    np.testing.assert_allclose(resolved.reference({"x": X}), X @ W + B, rtol=1e-5)


@pytest.mark.parametrize("batch", [1, full(3)])
def test_the_default_export_of_torch_has_the_hessian_of_the_module(batch: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3)).eval()
    share_operators()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (torch.zeros(batch, 4),), tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx.data").exists()
    x, y = torch.randn(7, 4), torch.randint(0, 3, (7,))
    report = wsb.analyze(load_model(tmp_path / "m.onnx"), wsb.Batch(x, y), wsb.Options(spectrum="dense"))
    names = [name for name, _ in module.named_parameters()]
    stored = [value.detach().double() for value in module.parameters()]

    def loss(*values: torch.Tensor) -> torch.Tensor:
        z = torch.func.functional_call(module.double(), dict(zip(names, values, strict=True)), (x.double(),))
        return torch.nn.functional.cross_entropy(z, y)

    blocks = torch.autograd.functional.hessian(loss, tuple(stored))
    rows = [torch.cat([part.reshape(a.numel(), -1) for part in row], 1) for row, a in zip(blocks, stored, strict=True)]
    eigenvalues = torch.linalg.eigvalsh(torch.cat(rows)).flip(0)
    assert report.spectrum is not None
    assert report.model.parameters.count == len(eigenvalues)
    np.testing.assert_allclose(report.spectrum.eigenvalues, eigenvalues, atol=1e-9)
    assert report.model.parity is not None
    assert not report.failed_checks


PEAK = """
import sys
import numpy as np
from pathlib import Path
from wsb_engine import load_model
def peak(): return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024
def read(folder):
    classifier = load_model(folder + "/m.onnx")
    loaded = peak()
    model = classifier.resolve()
    width = len(next(iter(model.parameters.values())))
    model.reference({"x": np.zeros((2, width), np.float32)})
    return loaded
read(sys.argv[1])
base = peak()
loaded = read(sys.argv[2])
print(loaded - base, peak() - base)
"""


def deep(folder: Path, width: int, layers: int) -> int:
    """A network of ``layers`` square layers with random weights; return the bytes of its data."""
    folder.mkdir()
    nodes, tensors, last, size = [], [], "x", 4 * width * width
    with (folder / "m.data").open("wb") as file:
        for index in range(layers):
            file.write(np.random.default_rng(index).standard_normal((width, width), dtype=np.float32).tobytes())
            tensors.append(tensor(f"w{index}", [width, width], offset=index * size, length=size))
            nodes += [node("MatMul", [last, f"w{index}"], [f"h{index}"]), node("Tanh", [f"h{index}"], [f"a{index}"])]
            last = f"a{index}"
    nodes[-1] = node("Identity", [nodes[-2].output[0]], ["z"])
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, width])]
    graph = helper.make_graph(nodes, "g", inputs, [onnx.ValueInfoProto(name="z")], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "m.onnx")
    return layers * size


def test_data_are_mapped(tmp_path: Path) -> None:
    model(folder=tmp_path)
    parameter = load_model(tmp_path / "m.onnx").parameters["w"]
    with Path("/proc/self/maps").open() as file:
        mapped = [line.split(maxsplit=5) for line in file if line.rstrip().endswith(str(tmp_path / "m.data"))]
    ranges = [[int(end, 16) for end in fields[0].split("-")] for fields in mapped]
    assert any(first <= parameter.data_ptr() < last for first, last in ranges)


@pytest.mark.slow
def test_large_data_are_mapped_and_not_copied(tmp_path: Path) -> None:
    deep(tmp_path / "small", 8, 2)
    size = deep(tmp_path / "large", 1280, 32)
    assert size > 200e6
    run = [sys.executable, "-c", PEAK, str(tmp_path / "small"), str(tmp_path / "large")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    peaks = []
    # On a busy machine up to a third of it is held besides at times; a copy would be there each time.
    while len(peaks) < 3 and (not peaks or min(peaks) >= 1.3 * size):
        done = subprocess.run(run, capture_output=True, text=True, check=True, env=environment)
        loaded, used = map(int, done.stdout.split())
        assert 0.9 * size < loaded < 1.1 * size
        peaks.append(used)
    assert min(peaks) < 1.3 * size
