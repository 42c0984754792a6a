"""Logits and labels of all samples: kept where they take little memory, else read chunk by chunk."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from support.eager import randomised
from support.forms import crossed, full
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import wsb_engine as wsb
from wsb_engine.analysis import parts
from wsb_engine.analysis.logits import LOGITS_SHARE, kept_bytes
from wsb_engine.analysis.monitor import Monitor
from wsb_engine.analysis.problem import Problem, pose

FEATURES, CLASSES = 50, 9
MEMORY = 1 << 20


def perceptron(outputs: int = CLASSES) -> nn.Module:
    return randomised(nn.Sequential(nn.Linear(FEATURES, 5), nn.Tanh(), nn.Linear(5, outputs)))


def general() -> nn.Module:
    return randomised(nn.Sequential(nn.Linear(FEATURES, 5), nn.LayerNorm(5), nn.SiLU(), nn.Linear(5, CLASSES)))


def batch(samples: int, *, soft: bool = False, classes: int = CLASSES) -> wsb.Batch:
    rng = np.random.default_rng(0)
    y = rng.dirichlet(np.ones(classes), samples) if soft else rng.integers(classes, size=samples)
    return wsb.Batch(rng.standard_normal((samples, FEATURES)), y)


def posed(module: nn.Module, data: wsb.Batch, **options: Any) -> Problem:
    chosen = wsb.Options(**options)
    return pose(wsb.from_module(module), data, chosen, Monitor(chosen, None, 0.0))


NETWORKS = {"perceptron": perceptron, "general": general, "one logit": lambda: perceptron(1)}


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_that_are_computed_again_are_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = batch(500, classes=2)
    kept = posed(NETWORKS[name](), data, memory_limit=MEMORY)
    assert kept.logits.kept is not None
    monkeypatch.setattr("wsb_engine.analysis.logits.LOGITS_SHARE", 0.0)
    again = posed(NETWORKS[name](), data, memory_limit=MEMORY)
    assert again.logits.kept is None
    assert len(list(again.objective.chunks())) > 1
    read = torch.cat([z for _, z in again.logits.chunks(again.objective)])
    torch.testing.assert_close(read, kept.logits.kept, rtol=1e-13, atol=1e-14)
    first = torch.cat([z for _, z in again.logits.chunks(again.objective, 70)])
    torch.testing.assert_close(first, read[:70], rtol=1e-13, atol=1e-14)
    assert again.logits.largest == kept.logits.largest == float(kept.logits.kept.abs().max())
    assert again.objective.scale == kept.objective.scale


@pytest.mark.slow
@pytest.mark.parametrize(("name", "soft"), crossed(("perceptron", "general"), (False, True)))
def test_a_report_does_not_depend_on_whether_logits_are_kept(
    name: str, soft: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def report() -> dict[str, Any]:
        options = wsb.Options(memory_limit=MEMORY, max_products=4)
        found = wsb.analyze(wsb.from_module(NETWORKS[name]()), batch(150, soft=soft), options)
        return found.model_dump(exclude={"timings", "loss"}), found.loss

    kept, kept_loss = report()
    monkeypatch.setattr("wsb_engine.analysis.logits.LOGITS_SHARE", 0.0)
    again, loss = report()
    assert again == kept
    assert loss.value == pytest.approx(kept_loss.value, rel=1e-14)
    assert loss.accuracy == pytest.approx(kept_loss.accuracy, rel=1e-14)
    assert loss.gradient_norm == kept_loss.gradient_norm


def test_hard_labels_give_the_report_of_their_rows_in_every_bit() -> None:
    hard = batch(100)
    rows = wsb.Batch(hard.x["x"], np.eye(CLASSES)[hard.y])
    options = wsb.Options(spectrum="dense")
    reports = [wsb.analyze(wsb.from_module(perceptron()), data, options) for data in (hard, rows)]
    found = [report.model_dump(exclude={"timings"}) for report in reports]
    assert found[0] == found[1]


def test_labels_and_equal_weights_take_no_memory_beside_the_batch() -> None:
    data = batch(50)
    targets = posed(perceptron(), data).objective.targets
    assert targets.y.numpy().ctypes.data == data.y.ctypes.data
    assert targets.weights.untyped_storage().nbytes() == torch.float64.itemsize
    assert float(targets.weights.sum()) == pytest.approx(1.0, rel=1e-15)
    soft = batch(50, soft=True)
    assert posed(perceptron(), soft).objective.targets.y.numpy().ctypes.data == soft.y.ctypes.data


def test_logits_are_kept_up_to_a_share_of_the_memory_limit() -> None:
    memory = 1 << 20
    most = int(LOGITS_SHARE * memory) // (8 * CLASSES)
    assert kept_bytes(most, CLASSES, memory) == 8 * most * CLASSES
    assert kept_bytes(most + 1, CLASSES, memory) == 0


class Largest(TorchDispatchMode):
    """Bytes of the largest result that is no view."""

    bytes = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if not function.is_view:
            made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
            self.bytes = max(self.bytes, *(tensor.nbytes for tensor in made), 0)
        return result


def largest_tensor(module: nn.Module, samples: int) -> int:
    """Bytes of the largest tensor of setup, loss, gradient and a product."""
    data = batch(samples, classes=2)
    with Largest() as found:
        problem = posed(module, data, memory_limit=MEMORY)
        parts.loss(problem)
        problem.hessian_product(columns=1).vector(torch.ones(problem.objective.parameters, dtype=torch.float64))
    return found.bytes


@pytest.mark.parametrize("name", ["perceptron", full("general"), full("one logit")])
def test_no_tensor_grows_with_the_number_of_samples(name: str) -> None:
    few, many = (largest_tensor(NETWORKS[name](), samples) for samples in (1_000, 2_000))
    assert many <= few
