from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from support.training import X, Y, batch, network, same
from torch import Tensor, nn

import wsb_engine as wsb
from wsb_engine.callbacks import measure


def test_a_measurement_is_the_analysis_of_the_module() -> None:
    module = network()
    options = wsb.Options(spectrum="top", top=2)
    report = wsb.analyze(wsb.from_module(module), batch(), options)
    found = measure(module, batch(), options, step=7)
    assert found.report.enclosure == report.enclosure
    assert found.report.spectrum == report.spectrum
    ends = report.enclosure.lambda_max  # type: ignore[union-attr]
    assert found.metrics == {
        "wsb/lambda_max": pytest.approx((ends.lower + ends.upper) / 2, rel=1e-12),
        "wsb/lambda_max_lower": ends.lower,
        "wsb/lambda_max_upper": ends.upper,
        "wsb/loss": report.loss.value,
    }
    assert (found.step, found.stability_ratio, found.no_ratio) == (7, None, None)


def test_the_module_and_the_process_are_as_before() -> None:
    module = network()
    module(X).sum().backward()
    module[3].eval()
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    gradients = [parameter.grad.clone() for parameter in module.parameters() if parameter.grad is not None]
    modes = [part.training for part in module.modules()]
    drawn = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    settings = (
        torch.get_num_threads(),
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
    )
    measure(module, batch())
    assert same(module.state_dict().values(), state.values())
    assert same([parameter.grad for parameter in module.parameters() if parameter.grad is not None], gradients)
    assert len(gradients) == 6
    assert [part.training for part in module.modules()] == modes
    assert torch.equal(torch.get_rng_state(), drawn[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == drawn[1:]  # noqa: NPY002
    assert settings == (
        *(torch.get_num_threads(), torch.get_float32_matmul_precision()),
        torch.are_deterministic_algorithms_enabled(),
    )


@pytest.mark.slow
def test_modes_of_the_caller_neither_change_it_nor_are_changed() -> None:
    module, options = network(), wsb.Options(moments="none")
    expected = measure(module, batch(), options).metrics
    with torch.inference_mode():
        assert measure(module, batch(), options).metrics == expected
        assert torch.is_inference_mode_enabled()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert measure(module, batch(), options).metrics == expected
        assert not torch.is_grad_enabled()
        assert torch.is_autocast_enabled("cpu")


class Noisy(nn.Module):
    """Draws a random number in evaluation mode too: no two products multiply by the same matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * (1 + torch.rand(()))  # type: ignore[no-any-return]


def test_numbers_of_a_report_with_a_failed_check_are_not_passed_on() -> None:
    module, state = Noisy(), torch.get_rng_state()
    with pytest.raises(wsb.EngineError) as raised:
        measure(module, batch())
    assert raised.value.code == "check_failed"
    assert torch.equal(torch.get_rng_state(), state)


def test_frozen_parameters_are_left_out() -> None:
    module = network()
    module[0].requires_grad_(False)
    free = ("1.weight", "1.bias", "4.weight", "4.bias")
    options = wsb.Options(moments="none")
    report = wsb.analyze(wsb.from_module(module), batch(), options.model_copy(update={"parameters": free}))
    assert measure(module, batch(), options).report.enclosure == report.enclosure
    everything = measure(module, batch(), wsb.Options(parameters=("*", "*"), moments="none", enclosure=False))
    assert everything.report.model.parameters.count > report.model.parameters.count


class Bracketed(nn.ModuleDict):
    def forward(self, x: Tensor) -> Tensor:
        return self["a0"](torch.tanh(self["a[0]"](x)))  # type: ignore[no-any-return]


def test_names_of_parameters_are_not_taken_for_globs() -> None:
    module = Bracketed({"a[0]": nn.Linear(4, 6), "a0": nn.Linear(6, 3)})
    module["a0"].requires_grad_(False)
    names = [each.name for each in measure(module, batch()).report.model.parameters.tensors]
    assert names == ["a[0].weight", "a[0].bias"]


class Outputs:
    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


class ByKeyword(nn.Module):
    """As models of transformers: everything by keyword, and the logits in an object."""

    main_input_name = "features"

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, features: Tensor | None = None, scale: Tensor | None = None, **_: Any) -> Outputs:
        assert features is not None
        assert scale is not None
        return Outputs(self.inner(features * scale[:, None]))


@pytest.mark.slow
def test_inputs_are_passed_by_name_to_a_module_that_requires_none() -> None:
    module = ByKeyword()
    scaled = wsb.Batch({"scale": torch.full((15,), 2.0), "features": X[:15]}, Y[:15])
    found = measure(module, scaled)
    plain = measure(module.inner, wsb.Batch(2 * X[:15], Y[:15]))
    assert found.metrics == pytest.approx(plain.metrics, rel=1e-6)
    assert found.report.model.parameters.tensors[0].name == "inner.0.weight"


@pytest.mark.slow
def test_wrappers_are_taken_off() -> None:
    module, options = network(), wsb.Options(moments="none")
    compiled = torch.compile(module, backend="eager")
    found, expected = (measure(each, batch(), options).metrics for each in (compiled, module))  # type: ignore[arg-type]
    assert found == expected


def test_what_is_no_batch_or_no_whole_module_is_refused() -> None:
    with pytest.raises(wsb.BatchError) as raised:
        measure(network(), (X, Y))  # type: ignore[arg-type]
    assert (raised.value.code, "Batch.from_loader" in raised.value.advice) == ("not_a_batch", True)
    module = network()
    module[0].weight = nn.Parameter(torch.empty(0))
    with pytest.raises(wsb.ModelError, match=r"only a shard of the parameter '0\.weight'") as refused:
        measure(module, batch())
    assert refused.value.code == "module_sharded"
