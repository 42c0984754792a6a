"""From what forward returns to the logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import wsb_engine as wsb
from wsb_engine import ModelError, load_model

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).double()


class Headed(nn.Module):
    """A linear layer and what follows it."""

    def __init__(self, head: Any, classes: int = 3) -> None:
        super().__init__()
        self.layer = nn.Linear(4, classes)
        self.head = head

    def forward(self, x: Tensor) -> Any:
        return self.head(self.layer(x))


STRIPPED: dict[str, tuple[Any, int, str]] = {
    "none": (nn.Identity(), 3, "none"),
    "softmax": (nn.Softmax(1), 3, "softmax"),
    "softmax over the last axis": (nn.Softmax(-1), 3, "softmax"),
    "log-softmax": (nn.LogSoftmax(1), 3, "log_softmax"),
    "sigmoid of one": (nn.Sigmoid(), 1, "sigmoid"),
    "sigmoid, flattened": (nn.Sequential(nn.Sigmoid(), nn.Flatten(0)), 1, "sigmoid"),
}


@pytest.mark.parametrize("name", STRIPPED)
@pytest.mark.parametrize("way", ["traced", "scripted", "frozen"])
def test_the_logits_under_a_head_are_found(name: str, way: str, randomised: Any, export: Any, logits: Any) -> None:
    head, classes, stripped = STRIPPED[name]
    module = randomised(Headed(head, classes))
    model = load_model(export(way, module, X[:2])).resolve()
    assert model.head == stripped
    assert model.mlp is not None
    torch.testing.assert_close(logits(model, X), module.layer(X))


def test_a_caller_can_say_that_the_output_is_z(randomised: Any, scripted: Any, logits: Any) -> None:
    module = randomised(Headed(nn.LogSoftmax(1)))
    model = load_model(scripted(module)).resolve(head="logits")
    assert model.head == "none"
    torch.testing.assert_close(logits(model, X), module(X))


def test_a_sigmoid_for_each_class_is_refused(randomised: Any, scripted: Any, logits: Any) -> None:
    model = load_model(scripted(randomised(Headed(nn.Sigmoid())))).resolve()
    with pytest.raises(ModelError) as caught:
        logits(model, X)
    assert caught.value.code == "multilabel_unsupported"


def test_a_softmax_over_the_samples_is_refused(randomised: Any, scripted: Any) -> None:
    with pytest.raises(ModelError) as caught:
        load_model(scripted(randomised(Headed(nn.Softmax(0))))).resolve()
    assert caught.value.code == "unsupported_head"


class Pair(Headed):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.layer(x)
        return torch.tanh(x), torch.softmax(z, 1)


class Keyed(Headed):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        z = self.layer(x)
        return {"hidden": torch.tanh(x), "logits": z, "auxiliary": self.layer(x * 2)}


def test_the_output_that_ends_in_a_softmax_is_taken(randomised: Any, scripted: Any, logits: Any) -> None:
    module = randomised(Pair(None))
    model = load_model(scripted(module)).resolve()
    torch.testing.assert_close(logits(model, X), module.layer(X))


@pytest.mark.parametrize("way", ["traced", "scripted", "frozen"])
def test_an_output_is_picked_by_its_key(way: str, randomised: Any, export: Any, logits: Any) -> None:
    module = randomised(Keyed(None))
    classifier = load_model(export(way, module, X[:2]))
    torch.testing.assert_close(logits(classifier.resolve(output="logits"), X), module.layer(X))
    torch.testing.assert_close(logits(classifier.resolve(output="auxiliary"), X), module.layer(X * 2))


def test_an_output_is_picked_by_its_position(randomised: Any, scripted: Any, logits: Any) -> None:
    module = randomised(Pair(None))
    model = load_model(scripted(module)).resolve(output="1")
    torch.testing.assert_close(logits(model, X), module.layer(X))


REFUSED = {
    "several that may be it": ({}, "ambiguous_output"),
    "none of that name": ({"output": "probabilities"}, "unknown_output"),
    "one without parameters": ({"output": "hidden"}, "model_no_parameters"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_output_that_cannot_hold_logits_is_refused(name: str, randomised: Any, scripted: Any) -> None:
    options, code = REFUSED[name]
    with pytest.raises(ModelError) as caught:
        load_model(scripted(randomised(Keyed(None)))).resolve(**options)  # type: ignore[arg-type]
    assert caught.value.code == code


def test_one_number_that_the_graph_does_not_explain_is_asked_about(randomised: Any, scripted: Any, logits: Any) -> None:
    class Odd(Headed):
        def forward(self, x: Tensor) -> Tensor:
            return 1 / (1 + torch.exp(-self.layer(x)))  # type: ignore[no-any-return]

    module = randomised(Odd(None, 1))
    classifier = load_model(scripted(module))
    with pytest.raises(ModelError) as caught:
        logits(classifier.resolve(), X)
    assert caught.value.code == "ambiguous_head"
    model = classifier.resolve(head="binary_probability")
    torch.testing.assert_close(logits(model, X), module.layer(X))


def test_probabilities_that_no_softmax_made_become_logarithms(randomised: Any, scripted: Any) -> None:
    class Odd(Headed):
        def forward(self, x: Tensor) -> Tensor:
            positive = nn.functional.softplus(self.layer(x))
            return positive / positive.sum(1, keepdim=True)  # type: ignore[no-any-return]

    batch = wsb.Batch(X.numpy(), np.array([0, 1, 2, 0, 1, 2]))
    report = wsb.analyze(load_model(scripted(randomised(Odd(None)))), batch)
    assert report.model.head == "probabilities"
    assert {each.code for each in report.warnings} == {"head_probed", "moments_left_out", "parity_none"}
