"""The plan runner that all readers share: what it frees, folds and refuses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from wsb_engine.errors import ModelError
from wsb_engine.formats.graph.plan import CPU, META, Call, Name, Plan, Planner, Step, Value, needed


@dataclass(frozen=True)
class Place:
    label: str = "node 7 'Toy'"
    details: dict[str, Any] = field(default_factory=lambda: {"operator": "Toy"})
    public_name: str = "Toy"


CALL = Call(node=Place(), working=torch.float64, device=CPU)


def double(call: Call[Place], x: Tensor) -> Tensor:
    return 2 * x


def step(source: str, target: str) -> Step:
    return Step(CALL, double, (Name(source),), (target,))


def test_values_are_freed_after_their_last_use_and_idle_steps_left_out() -> None:
    steps = needed([step("x", "a"), step("a", "b"), step("a", "idle"), step("b", "z")], ("z",))
    assert [each.outputs for each in steps] == [("a",), ("b",), ("z",)]
    assert [set(each.finished) for each in steps] == [{"x"}, {"a"}, {"b"}]
    values = {"x": torch.ones(2)}
    (z,) = Plan(steps, ("z",), {}).run(values)
    assert z.tolist() == [8, 8]
    assert set(values) == {"z"}


def test_what_depends_on_constants_alone_is_folded() -> None:
    planner = Planner()
    constant = Value("c", torch.empty(2, device=META), torch.ones(2))
    made, known = planner.evaluate(CALL, double, (constant,))
    assert known
    assert made.tolist() == [2, 2]
    made, known = planner.evaluate(CALL, double, (Value("x", torch.empty(2, device=META)),))
    assert not known
    assert made.device == META
    assert not planner.steps


def test_a_constant_past_the_limit_is_refused_before_it_is_computed() -> None:
    devices = []

    def vast(call: Call[Place]) -> Tensor:
        devices.append(call.device)
        return torch.ones(1, device=call.device).expand(2**28)

    with pytest.raises(ModelError, match="node 7 'Toy': a tensor of 268435456 elements") as caught:
        Planner().evaluate(CALL, vast, ())
    assert caught.value.code == "tensor_too_large"
    assert devices == [META]


def test_folding_is_bounded_in_all() -> None:
    planner = Planner()

    def large(call: Call[Place]) -> Tensor:
        return torch.ones(1, device=call.device).expand(2**27)

    for _ in range(4):
        planner.evaluate(CALL, large, ())
    with pytest.raises(ModelError) as caught:
        planner.evaluate(CALL, large, ())
    assert caught.value.code == "tensor_too_large"


def test_a_kernels_failure_names_the_node_and_the_shapes() -> None:
    with pytest.raises(ModelError, match=r"node 7 'Toy' can't be applied to shapes \[\[2\], \[3\]\]") as caught:
        CALL.run(lambda call, a, b: a @ b, (torch.ones(2), torch.ones(3)))
    assert caught.value.code == "evaluation_failed"
    assert caught.value.details["operator"] == "Toy"


def test_running_out_of_memory_stays_the_error_that_it_is() -> None:
    def starved(call: Call[Place]) -> Tensor:
        raise torch.OutOfMemoryError("no memory")

    with pytest.raises(torch.OutOfMemoryError):
        CALL.run(starved, ())
