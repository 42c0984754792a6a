"""The operator table against ONNX's own node tests, and against the older suites that the onnx package ships."""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import InferenceSession
from support.forms import thinned
from torch import Tensor

from wsb_engine import ModelError
from wsb_engine.formats.graph import operators
from wsb_engine.formats.graph.branches import resolve_branches
from wsb_engine.formats.graph.graph import Graph
from wsb_engine.formats.graph.program import Program
from wsb_engine.formats.graph.simplify import simplify
from wsb_engine.formats.onnx.build import build
from wsb_engine.formats.onnx.external import DataFiles

NO_FILES = DataFiles([], None, None, 0).elements

OUT_OF_SCOPE = {
    "Adagrad": "a training step",
    "Adam": "a training step",
    "AffineGrid": "sampling grids; torch's grid sampler has no second derivative",
    "Bernoulli": "random",
    "BitCast": "bits of a number are not differentiable",
    "BlackmanWindow": "signal processing",
    "CausalConvWithState": "step-by-step generation",
    "ConvInteger": "quantised arithmetic is not differentiable",
    "DFT": "signal processing",
    "DeformConv": "torch has it in torchvision only",
    "DequantizeLinear": "quantised arithmetic is not differentiable",
    "DynamicQuantizeLinear": "quantised arithmetic is not differentiable",
    "FlexAttention": "a preview of an operator with subgraphs",
    "GridSample": "torch's grid sampler has no second derivative",
    "HammingWindow": "signal processing",
    "HannWindow": "signal processing",
    "ImageDecoder": "decodes files",
    "LinearAttention": "step-by-step generation",
    "Loop": "control flow on values",
    "MatMulInteger": "quantised arithmetic is not differentiable",
    "MaxUnpool": "needs the positions of MaxPool",
    "MelWeightMatrix": "signal processing",
    "Momentum": "a training step",
    "NegativeLogLikelihoodLoss": "a loss; classifiers are exported without it",
    "NonMaxSuppression": "a data-dependent number of outputs",
    "OptionalGetElement": "optional values",
    "OptionalHasElement": "optional values",
    "QLinearConv": "quantised arithmetic is not differentiable",
    "QLinearMatMul": "quantised arithmetic is not differentiable",
    "QuantizeLinear": "quantised arithmetic is not differentiable",
    "RegexFullMatch": "strings",
    "RoiAlign": "detection",
    "STFT": "signal processing",
    "Scan": "control flow on values",
    "SequenceInsert": "sequences",
    "SequenceMap": "sequences",
    "SoftmaxCrossEntropyLoss": "a loss; classifiers are exported without it",
    "SplitToSequence": "sequences",
    "StringConcat": "strings",
    "StringNormalizer": "strings",
    "StringSplit": "strings",
    "TfIdfVectorizer": "strings",
    "TreeEnsemble": "piecewise constant",
    "Unique": "a data-dependent number of outputs",
}
"""Operator → why the table does not have it."""

EXCUSED = {
    "test_batchnorm_epsilon_training_mode": "training mode is refused",
    "test_batchnorm_example_training_mode": "training mode is refused",
    "test_col2im_5d": "torch folds images of two axes only",
    "test_if_opt": "optional values",
    "test_if_seq": "sequences",
    "test_maxpool_with_argmax_2d_precomputed_pads": "positions of maxima are refused",
    "test_maxpool_with_argmax_2d_precomputed_strides": "positions of maxima are refused",
    "test_training_dropout": "evaluated as in inference",
    "test_training_dropout_default": "evaluated as in inference",
    "test_training_dropout_default_mask": "evaluated as in inference",
    "test_training_dropout_mask": "evaluated as in inference",
}
"""Single tests of operators that the table has → why they are not expected to pass."""

HALF = {"float16": 4e-3, "bfloat16": 2e-2}
"""Relative rounding of the types that are computed in the working type instead."""


@dataclass(frozen=True)
class Case:
    name: str
    operator: str
    model: onnx.ModelProto
    data: list[tuple[list[Any], list[Any]]]
    rtol: float


Cases = dict[str, list[Case]]
Outcome = Callable[[Case], str]


@pytest.fixture(scope="module")  # it takes seconds, once and in one process
def cases() -> Cases:
    """The single-node tests by operator."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the test generators divide by zero on purpose
        from onnx.backend.test.case.node import collect_testcases

        found = collect_testcases(None)
    by_operator = defaultdict(list)
    for case in found:
        if len(case.model.graph.node) == 1:
            kind = case.model.graph.node[0].op_type
            by_operator[kind].append(Case(case.name, kind, case.model, case.data_sets, max(case.rtol, 1e-3)))
    return dict(by_operator)


def tensor(value: Any) -> tuple[Tensor, str]:
    """A test's array, floating types widened, and the name of its own type."""
    array = np.asarray(numpy_helper.to_array(value) if isinstance(value, TensorProto) else value)
    kind = array.dtype.name
    wide = array.astype(np.float64) if array.dtype.kind == "f" or kind in HALF else np.array(array)
    return torch.from_numpy(np.atleast_1d(wide)).reshape(array.shape), kind


def settled(graph: Graph, values: dict[str, Tensor]) -> Graph:
    """The graph with those inputs fixed that must be known before a kernel can run."""
    fixed = set()
    for node in graph.nodes:
        entry = operators.find(node)
        if entry is not None:
            fixed |= {name for i, name in enumerate(node.inputs) if entry.concrete or i in entry.static}
        fixed |= {node.inputs[0]} if node.operator == "If" else set()
    constants = {name: value for name, value in values.items() if name in fixed}
    inputs = tuple(entry for entry in graph.inputs if entry.name not in constants)
    return replace(graph, inputs=inputs, constants={**graph.constants, **constants})


def check(model: onnx.ModelProto, inputs: list[Any], outputs: list[Any], rtol: float) -> None:
    graph = build(model, NO_FILES)
    values = {entry.name: tensor(value)[0] for entry, value in zip(graph.inputs, inputs, strict=False)}
    graph = simplify(resolve_branches(settled(graph, values)))
    made = Program(graph, graph.outputs, ())({}, values)
    for found, value in zip(made, outputs, strict=True):
        expected, kind = tensor(value)
        assert found.shape == expected.shape
        assert found.dtype == expected.dtype
        if expected.is_floating_point():
            narrow = found.to(getattr(torch, kind)).double() if kind in HALF else found
            tolerance = HALF.get(kind, rtol)
            np.testing.assert_allclose(narrow, expected, rtol=tolerance, atol=1e-3 if kind in HALF else 1e-6)
        else:
            np.testing.assert_array_equal(found, expected)


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    """Case → what became of it; several tests ask for the same one."""
    found: dict[str, str] = {}

    def run(case: Case) -> str:
        if case.name not in found:
            found[case.name] = _outcome(case)
        return found[case.name]

    return run


def _outcome(case: Case) -> str:
    """pass, fail, or why the case is out of scope."""
    if case.operator in OUT_OF_SCOPE:
        return "skip"
    try:
        for inputs, outputs in case.data:
            check(case.model, inputs, outputs, case.rtol)
    except ModelError as error:
        skipped = ("unsupported_dtype", "unsupported_input", "unsupported_opset")
        return "skip" if error.code in skipped else "fail"
    except AssertionError:
        return "fail"
    except TypeError:  # an array type that torch does not have: the 4- and 8-bit floats
        return "skip"
    return "pass"


@pytest.mark.slow
def test_at_least_97_percent_of_the_node_tests_in_scope_pass(
    cases: Cases, outcome: Outcome, capsys: pytest.CaptureFixture[str]
) -> None:
    table = {kind: Counter(outcome(case) for case in found) for kind, found in sorted(cases.items())}
    total: Counter[str] = sum(table.values(), Counter())
    with capsys.disabled():
        print(f"\n{'operator':32}{'pass':>6}{'fail':>6}{'skip':>6}")
        for kind, counts in table.items():
            print(f"{kind:32}{counts['pass']:6}{counts['fail']:6}{counts['skip']:6}")
        print(f"{'total':32}{total['pass']:6}{total['fail']:6}{total['skip']:6}")
    assert total["pass"] > 900
    assert total["pass"] / (total["pass"] + total["fail"]) >= 0.97


@pytest.mark.parametrize("kind", thinned(sorted({name for _, name in operators.supported()} | {"If"}), 80))
def test_every_node_test_of_an_operator_passes_or_is_excused(cases: Cases, outcome: Outcome, kind: str) -> None:
    failed = [case.name for case in cases.get(kind, []) if outcome(case) == "fail"]
    assert [name for name in failed if name not in EXCUSED] == []


def test_every_operator_of_the_node_tests_is_in_the_table_or_out_of_scope_with_a_reason(cases: Cases) -> None:
    known = {name for _, name in operators.supported()} | set(OUT_OF_SCOPE) | {"Constant", "If"}
    assert sorted(set(cases) - known) == []


def test_an_operator_out_of_scope_is_not_in_the_table() -> None:
    assert sorted(set(OUT_OF_SCOPE) & {name for _, name in operators.supported()}) == []


def _differentiable(case: Case) -> tuple[Program, dict[str, Tensor], dict[str, Tensor]] | None:
    """The case's program, its floating inputs, and its others; None where nothing floats in and out."""
    graph = build(case.model, NO_FILES)
    values = {entry.name: tensor(value)[0] for entry, value in zip(graph.inputs, case.data[0][0], strict=False)}
    graph = simplify(resolve_branches(settled(graph, values)))
    given = {entry.name: values[entry.name] for entry in graph.inputs}
    floats = {name: value for name, value in given.items() if value.is_floating_point() and value.numel()}
    wanted = [
        name
        for name, value in zip(graph.outputs, case.data[0][1], strict=False)
        if tensor(value)[0].is_floating_point()
    ]
    if not floats or not wanted:
        return None
    return Program(graph, tuple(wanted), ()), floats, {k: v for k, v in given.items() if k not in floats}


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*is deprecated:DeprecationWarning")
@pytest.mark.parametrize("kind", thinned(sorted({name for _, name in operators.supported()} - {"Scaler"}), 40))
def test_an_operator_has_the_same_second_derivative_under_transforms_as_by_double_backward(
    cases: Cases, outcome: Outcome, kind: str
) -> None:
    passing = [case for case in cases.get(kind, []) if outcome(case) == "pass"]
    for case in [passing[i] for i in sorted({0, len(passing) // 2, len(passing) - 1}) if passing]:
        found = _differentiable(case)
        if found is None:
            continue
        program, floats, rest = found

        def scalar(values: dict[str, Tensor], program: Program = program, rest: dict[str, Tensor] = rest) -> Tensor:
            return sum((torch.sin(made).sum() for made in program({}, {**values, **rest})), torch.zeros(()).double())

        generator = torch.Generator().manual_seed(0)
        directions = {
            name: torch.randn(2, *value.shape, generator=generator, dtype=torch.float64)
            for name, value in floats.items()
        }
        products = torch.func.vmap(
            lambda v, floats=floats, scalar=scalar: torch.func.jvp(torch.func.grad(scalar), (floats,), (v,))[1]
        )(directions)
        _, expected = torch.autograd.functional.hvp(
            lambda *v, floats=floats, scalar=scalar: scalar(dict(zip(floats, v, strict=True))),
            tuple(floats.values()),
            tuple(value[1] for value in directions.values()),
        )
        for name, value in zip(floats, expected, strict=True):
            torch.testing.assert_close(
                products[name][1], value, rtol=1e-9, atol=1e-9, equal_nan=True, msg=lambda m, c=case: f"{c.name}: {m}"
            )


ENCODINGS: dict[str, tuple[np.ndarray, dict[str, Any], int]] = {
    "integers to numbers": (
        np.array([[3], [7], [-2], [7]]),
        {"keys_int64s": [7, -2, 7], "values_floats": [0.5, 1.5, 9.0], "default_float": -4.0},
        2,
    ),
    "numbers to integers": (
        np.array([[0.1], [np.nan], [2.0]], dtype=np.float32),
        {"keys_floats": [float("nan"), 0.1], "values_int64s": [5, 6]},
        2,
    ),
    "not a number to integers": (
        np.array([[0.1], [np.nan], [np.inf]], dtype=np.float32),
        {
            "keys_tensor": numpy_helper.from_array(np.array([np.nan, 0.1, np.inf], dtype=np.float32)),
            "values_tensor": numpy_helper.from_array(np.array([5, 6, 7])),
            "default_tensor": numpy_helper.from_array(np.array([-1])),
        },
        4,
    ),
    "integers to integers": (np.array([[1], [0]]), {"keys_int64s": [0, 1], "values_int64s": [1, 0]}, 2),
}


@pytest.mark.parametrize("name", ENCODINGS)
def test_numbers_are_encoded_as_by_onnxruntime(name: str) -> None:
    x, attributes, version = ENCODINGS[name]
    node = helper.make_node("LabelEncoder", ["x"], ["y"], domain=operators.ML, **attributes)
    kinds = {True: TensorProto.FLOAT, False: TensorProto.INT64}
    given = helper.make_tensor_value_info("x", kinds[x.dtype.kind == "f"], ["n", 1])
    made = helper.make_tensor_value_info("y", kinds["values_floats" in attributes], ["n", 1])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(operators.ML, version)]
    graph = helper.make_graph([node], "encoded", [given], [made])
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    [expected] = InferenceSession(model.SerializeToString()).run(None, {"x": x})
    check(model, [x], [expected], 0.0)
    program = Program(build(model, NO_FILES), ("y",), ())
    wide = torch.from_numpy(x.astype(np.float64) if x.dtype.kind == "f" else x)
    found = torch.func.vmap(lambda row: program({}, {"x": row})[0])(wide.unsqueeze(1))
    np.testing.assert_array_equal(found.squeeze(1), expected)


SUITES = Path(onnx.__file__).parent / "backend" / "test" / "data"
OLD_EXCUSED = {
    "test_PReLU_1d_multiparam": "broadcasts the slope as opset 6 did",
    "test_PReLU_2d_multiparam": "broadcasts the slope as opset 6 did",
    "test_PReLU_3d_multiparam": "broadcasts the slope as opset 6 did",
    "test_gradient_of_add": "a training operator",
    "test_gradient_of_add_and_mul": "a training operator",
    **{f"test_sequence_model{i}": "sequences" for i in range(1, 9)},
}
FOLDERS = [
    folder
    for suite in ("pytorch-converted", "pytorch-operator", "simple")
    for folder in sorted((SUITES / suite).iterdir())
    if folder.is_dir() and "strnorm" not in folder.name  # strings
]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_suites_of_older_opsets_pass(folder: Path) -> None:
    if folder.name in OLD_EXCUSED:
        pytest.skip(OLD_EXCUSED[folder.name])
    model = onnx.load(folder / "model.onnx")
    # Most of them say opset 6, of which nothing that these models use changed in opset 7.
    model.opset_import[0].version = max(model.opset_import[0].version, 7)

    def arrays(pattern: str) -> list[Any]:
        paths = sorted((folder / "test_data_set_0").glob(pattern), key=lambda path: int(path.stem.split("_")[1]))
        return [numpy_helper.to_array(onnx.load_tensor(path)) for path in paths]

    check(model, arrays("input_*.pb"), arrays("output_*.pb"), 1e-3)
