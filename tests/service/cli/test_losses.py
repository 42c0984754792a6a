"""Losses from end to end: a tiny language model and others, by the command and over HTTP."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from support.command import wsb_here as wsb
from support.service import StartService, npz_batch, onnx_mlp
from torch import nn

from wsb_engine.report import Report

RNG = np.random.default_rng(0)
EMBEDDING, HEAD = RNG.normal(size=(7, 4)), RNG.normal(size=(4, 7))
TOKENS, NEXT = RNG.integers(0, 7, (3, 5)), RNG.integers(0, 7, (3, 5))
NEXT[0, 3:] = -100
"""Padding, as collators mark it."""


def language_model() -> bytes:
    """Embeds tokens and predicts the next one: [N, 5] → [N, 5, 7]."""
    nodes = [
        helper.make_node("Gather", ["embedding", "tokens"], ["e"]),
        helper.make_node("Tanh", ["e"], ["h"]),
        helper.make_node("MatMul", ["h", "head"], ["z"]),
    ]
    arrays = [numpy_helper.from_array(array, name) for name, array in (("embedding", EMBEDDING), ("head", HEAD))]
    inputs = [helper.make_tensor_value_info("tokens", TensorProto.INT64, ["n", 5])]
    outputs = [helper.make_tensor_value_info("z", TensorProto.DOUBLE, ["n", 5, 7])]
    graph = helper.make_graph(nodes, "language", inputs, outputs, arrays)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10).SerializeToString()


def saved(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def expected(smoothing: float) -> tuple[float, float]:
    """Loss and λ_max by torch."""
    sizes, tokens, labels = ((7, 4), (4, 7)), torch.from_numpy(TOKENS), torch.from_numpy(NEXT)
    criterion = nn.CrossEntropyLoss(label_smoothing=smoothing)

    def loss(flat: torch.Tensor) -> torch.Tensor:
        embedding, head = (part.view(size) for part, size in zip(flat.split(28), sizes, strict=True))
        return criterion((torch.tanh(embedding[tokens]) @ head).flatten(0, 1), labels.flatten())

    theta = torch.from_numpy(np.concatenate([EMBEDDING.ravel(), HEAD.ravel()]))
    H = torch.autograd.functional.hessian(loss, theta)
    return loss(theta).item(), float(torch.linalg.eigvalsh(H)[-1])


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    (tmp_path / "language.onnx").write_bytes(language_model())
    (tmp_path / "text.npz").write_bytes(saved(tokens=TOKENS, y=NEXT))
    return str(tmp_path / "language.onnx"), str(tmp_path / "text.npz")


def check(report: Report, smoothing: float) -> None:
    value, largest = expected(smoothing)
    assert report.loss.kind == "token_cross_entropy"
    assert report.loss.value == pytest.approx(value, rel=1e-12)
    assert (report.loss.ignored, report.batch.positions, report.batch.classes) == (2, 5, 7)
    assert report.enclosure is not None
    ends = report.enclosure.lambda_max
    assert ends.lower * (1 - 1e-12) <= largest <= ends.upper * (1 + 1e-12)


def test_the_command_certifies_a_language_model_and_gates_it(files: tuple[str, str], tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in ("plain.json", "report.html")]
    plain = wsb("analyze", *files, "--json", paths[0], "--html", paths[1])
    assert plain.returncode == 0, plain.stderr
    check(Report.model_validate_json(Path(paths[0]).read_text()), smoothing=0)
    assert "3 samples, 5 labels, 7 classes" in plain.stdout
    assert "2 labels ignored" in plain.stdout
    assert "--loss token_cross_entropy" in Path(paths[1]).read_text()

    (tmp_path / "policy.toml").write_text('[[rule]]\nmetric = "enclosure.lambda_max"\nmax_relative_increase = 0.1\n')
    gate = ("--policy", str(tmp_path / "policy.toml"), "--baseline", paths[0])
    assert wsb("check", *files, *gate).returncode == 0
    other = wsb("check", *files, *gate, "--label-smoothing", "0.1")
    assert other.returncode == 2
    assert "loss.label_smoothing" in other.stdout + other.stderr


def test_the_command_refuses_an_option_of_another_loss(files: tuple[str, str]) -> None:
    result = wsb("analyze", *files, "--pos-weight", "2,3")
    assert result.returncode == 2
    assert "option_not_of_loss" in result.stderr
    assert "Leave pos_weight out" in result.stderr


@pytest.mark.slow
def test_the_service_certifies_tokens_labels_and_numbers(start_service: StartService) -> None:
    posted = {
        "tokens": (language_model(), saved(tokens=TOKENS, y=NEXT), {"label_smoothing": 0.2}),
        "labels": (onnx_mlp(), saved(x=RNG.normal(size=(6, 4)), y=RNG.integers(0, 2, (6, 3))), {"loss": "multilabel"}),
        "numbers": (onnx_mlp(), saved(x=RNG.normal(size=(6, 4)), y=RNG.normal(size=(6, 3))), {"loss": "squared_error"}),
        "refused": (onnx_mlp(), npz_batch(), {"class_weights": [1, 2]}),
    }
    service = start_service(engine=True)
    found = {}
    for name, (model, batch, options) in posted.items():
        request = json.dumps({"options": options}).encode()
        sent = service.client.post("/v1/analyses", files={"model": model, "batch": batch, "request": request})
        found[name] = service.ended(sent.json()["id"])
    reports = {
        name: Report.model_validate(service.client.get(f"/v1/analyses/{found[name]['id']}/report").json())
        for name in ("tokens", "labels", "numbers")
    }
    page = service.client.get("/", headers={"Accept": "text/html"}).text
    check(reports["tokens"], smoothing=0.2)
    assert reports["labels"].loss.kind == "multilabel"
    assert found["numbers"]["numbers"]["accuracy"] is None
    assert found["numbers"]["numbers"]["loss"] == reports["numbers"].loss.value
    assert found["refused"]["error"]["code"] == "class_weights_mismatch"
    assert all(name in page for name in ("token_cross_entropy", "class_weights"))
