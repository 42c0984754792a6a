"""Scaled sharpness: against dense matrices, its invariances, and what D is in odd cases."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from support.forms import crossed, full, thinned
from torch import Tensor, nn

import wsb_engine as wsb
from wsb_engine.curvature.tracing.filters import filter_axes
from wsb_engine.report import Report, Scaled

SCALINGS = ("elementwise", "tensor", "filter")
X, Y = torch.randn(30, 6, generator=torch.Generator().manual_seed(0)).double(), torch.arange(30) % 3


def network(activation: type[nn.Module] = nn.Tanh, *, bias: bool = True, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = (nn.Linear(6, 5, bias), activation(), nn.Linear(5, 4, bias), activation(), nn.Linear(4, 3, bias))
    return nn.Sequential(*layers).double().eval()


def analyzed(module: nn.Module, x: Tensor = X, **options: Any) -> Report:
    return wsb.analyze(wsb.from_module(module), wsb.Batch(x.numpy(), Y.numpy()), wsb.Options(**options))


def part(module: nn.Module, scaling: str, x: Tensor = X, **options: Any) -> Scaled:
    """Of an analysis of nothing else."""
    options = {"moments": "none", "enclosure": False, **options}
    found = analyzed(module, x, scaling=scaling, **options).scaled
    assert found is not None
    return found


def hessian(module: nn.Module, names: list[str], x: Tensor = X) -> Tensor:
    """H by double backward."""
    parameters = dict(module.named_parameters())
    sizes = [parameters[name].numel() for name in names]

    def loss(flat: Tensor) -> Tensor:
        pieces = {name: piece.view_as(parameters[name]) for name, piece in zip(names, flat.split(sizes), strict=True)}
        return nn.functional.cross_entropy(torch.func.functional_call(module, pieces, (x,)), Y)

    flat = torch.cat([parameters[name].detach().flatten() for name in names])
    return torch.autograd.functional.hessian(loss, flat)


def scales(scaling: str, tensor: Tensor) -> Tensor:
    """D of one tensor of a torch module, whose filters lie along its first axis."""
    if scaling == "tensor":
        return tensor.norm().expand_as(tensor)
    if scaling == "elementwise" or tensor.ndim == 1:
        return tensor.abs()
    return tensor.flatten(1).norm(dim=1).view(-1, *[1] * (tensor.ndim - 1)).expand_as(tensor)


def dense(module: nn.Module, scaling: str, names: list[str] | None = None, x: Tensor = X) -> Tensor:
    """D H D."""
    parameters = dict(module.named_parameters())
    names = list(parameters) if names is None else names
    s = torch.cat([scales(scaling, parameters[name].detach()).flatten() for name in names])
    return s[:, None] * hessian(module, names, x) * s


@pytest.mark.parametrize(("scaling", "activation"), crossed(SCALINGS, [nn.Tanh, nn.GELU, nn.ReLU]))
def test_both_ends_enclose_the_largest_eigenvalue_of_the_dense_matrix(
    scaling: str, activation: type[nn.Module]
) -> None:
    module = network(activation)
    found, want = part(module, scaling).lambda_max, float(torch.linalg.eigvalsh(dense(module, scaling))[-1])
    # The dense solver rounds too.
    assert found.lower <= want * (1 + 1e-12)
    assert want * (1 - 1e-12) <= found.upper <= want * (1 + 2e-6)
    assert found.relative_gap <= 1.1e-6


@pytest.mark.parametrize(("scaling", "bias"), crossed(["tensor", "filter"], [True, False]))
def test_the_closed_form_has_the_moments_of_the_dense_matrix(scaling: str, bias: bool) -> None:
    module = network(bias=bias)
    found, matrix = part(module, scaling, moments="auto"), dense(module, scaling)
    assert found.moments.trace == pytest.approx(float(matrix.trace()), rel=1e-12)
    assert found.moments.frobenius_squared == pytest.approx(float(matrix.square().sum()), rel=1e-12)
    assert found.wolkowicz_styan.lower <= float(torch.linalg.eigvalsh(matrix)[-1]) <= found.wolkowicz_styan.upper
    assert part(module, scaling).moments is None


@pytest.mark.slow
@pytest.mark.parametrize("activation", [nn.ReLU, full(nn.Identity)])
def test_rescaled_units_leave_the_elementwise_scaling_as_it_is(activation: type[nn.Module]) -> None:
    module, generator = network(activation), torch.Generator().manual_seed(1)
    before = dense(module, "elementwise")
    first = part(module, "elementwise").lambda_max
    with torch.no_grad():
        for layer, following in ((0, 2), (2, 4)):
            factors = torch.rand(module[layer].out_features, generator=generator).double() * 9.9 + 0.1
            module[layer].weight *= factors[:, None]
            module[layer].bias *= factors
            module[following].weight /= factors
    after = dense(module, "elementwise")
    assert float((after - before).abs().max()) <= 1e-10 * float(before.abs().max())
    second = part(module, "elementwise").lambda_max
    assert second.lower <= first.upper
    assert first.lower <= second.upper
    unscaled = analyzed(module, moments="none", relative_gap=1e-3).enclosure.lambda_max
    assert unscaled.lower > 1.01 * second.upper


@pytest.mark.slow
@pytest.mark.parametrize("scaling", thinned(SCALINGS, 1))
def test_rescaled_layers_leave_every_scaling_as_it_is(scaling: str) -> None:
    module = network(nn.ReLU)
    first = part(module, scaling).lambda_max
    with torch.no_grad():
        module[0].weight *= 5
        module[0].bias *= 5
        module[2].weight /= 5
    second = part(module, scaling).lambda_max
    assert second.lower <= first.upper
    assert first.lower <= second.upper


def test_a_convolution_is_scaled_by_its_filters() -> None:
    torch.manual_seed(2)
    module = nn.Sequential(nn.Conv2d(1, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(6, 3)).double().eval()
    x = X.reshape(30, 1, 2, 3)
    want = float(torch.linalg.eigvalsh(dense(module, "filter", x=x))[-1])
    found = part(module, "filter", x)
    assert found.lambda_max.lower <= want * (1 + 1e-12)
    assert want * (1 - 1e-12) <= found.lambda_max.upper <= want * (1 + 2e-6)
    assert found.rounding.how == "measured"


def test_filters_are_found_whatever_the_layout_of_a_tensor() -> None:
    parameters = {"turned": torch.ones(4, 2), "up": torch.ones(2, 3, 2), "one": torch.ones(1, 6), "gain": torch.ones(6)}

    def function(p: dict[str, Tensor], inputs: dict[str, Tensor]) -> Tensor:
        h = (inputs["x"] @ p["turned"]).unsqueeze(2)
        h = nn.functional.conv_transpose1d(h, p["up"]).flatten(1)
        return nn.functional.linear(h * p["gain"], p["one"])

    assert filter_axes(function, parameters, {"x": torch.ones(1, 4)}) == {"turned": 1, "up": 1, "one": 0}


def test_selected_parameters_alone_are_scaled() -> None:
    module = network()
    names = ["0.weight", "0.bias"]
    want = float(torch.linalg.eigvalsh(dense(module, "filter", names))[-1])
    found = part(module, "filter", parameters=tuple(names)).lambda_max
    assert found.lower <= want * (1 + 1e-12)
    assert want * (1 - 1e-12) <= found.upper <= want * (1 + 2e-6)


def _zeroed(module: nn.Sequential) -> None:
    module[2].weight[:] = 0


def _tiny(module: nn.Sequential) -> None:
    module[0].weight[0] = 5e-324


def _vast(module: nn.Sequential) -> None:
    # Squares of these scales and of H leave the range of numbers.
    module[0].weight *= 1e100
    module[0].bias *= 1e100
    module[2].weight *= 1e-100


@pytest.mark.parametrize(("scaling", "change"), crossed(SCALINGS, [_zeroed, _tiny, _vast]))
def test_zero_subnormal_and_vast_weights_are_scaled_exactly(
    scaling: str, change: Callable[[nn.Sequential], None]
) -> None:
    module = network(nn.Identity)
    with torch.no_grad():
        change(module)
    if change is _vast:
        with torch.no_grad():
            plain = network(nn.Identity)
        want = float(torch.linalg.eigvalsh(dense(plain, scaling))[-1])
    else:
        want = float(torch.linalg.eigvalsh(dense(module, scaling))[-1])
    found = part(module, scaling).lambda_max
    assert found.lower <= want * (1 + 1e-9)
    assert want * (1 - 1e-9) <= found.upper <= want * (1 + 1e-5)


def test_a_model_of_zeros_has_scaled_sharpness_0_with_certainty() -> None:
    module = network()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    found = part(module, "elementwise", moments="auto", enclosure=True)
    assert (found.lambda_max.lower, found.lambda_max.upper, found.lambda_max.kind) == (0, 0, "deterministic")


def test_a_zero_among_the_weights_keeps_the_sharpness_from_being_negative() -> None:
    # A linear model with a squared error has a Hessian that is not negative; here the only row of it is 0.
    module = nn.Linear(6, 3).double()
    with torch.no_grad():
        module.bias.zero_()
    assert part(module, "elementwise").lambda_max.lower >= 0


def test_float32_is_certified_with_what_rounding_may_have_done() -> None:
    module = network().float()
    found = part(module, "filter", X.float(), dtype="float32").lambda_max
    want = float(torch.linalg.eigvalsh(dense(module.double(), "filter", x=X.float().double()))[-1])
    assert found.lower <= want <= found.upper <= want * 1.05


def test_three_vectors_certify_it_too() -> None:
    module = network()
    want = float(torch.linalg.eigvalsh(dense(module, "elementwise"))[-1])
    found = part(module, "elementwise", basis="three_vectors").lambda_max
    assert found.lower <= want * (1 + 1e-12)
    assert want * (1 - 1e-12) <= found.upper <= want * (1 + 1e-4)


def test_the_same_seed_gives_the_same_part_and_nothing_else_changes() -> None:
    module = network()
    plain, first, again = analyzed(module), analyzed(module, scaling="tensor"), analyzed(module, scaling="tensor")
    assert first.scaled == again.scaled
    kept = {"scaled", "timings", "products", "citations", "evidence"}
    assert first.model_dump(exclude=kept) == plain.model_dump(exclude=kept)
    assert plain.scaled is None


class Clock:
    """The clock of an analysis, which can be moved on."""

    late = 0.0

    def perf_counter(self) -> float:
        return time.perf_counter() + self.late


def test_a_time_limit_leaves_it_out_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("wsb_engine.analysis.monitor.time", clock)

    def pass_time(progress: wsb.Progress) -> None:
        clock.late = 1e4 if progress.phase == "scaled" else 0.0

    batch = wsb.Batch(X.numpy(), Y.numpy())
    options = wsb.Options(scaling="elementwise", time_limit=1e3, moments="none", relative_gap=1e-2)
    found = wsb.analyze(wsb.from_module(network()), batch, options, progress=pass_time)
    assert found.scaled is None
    assert found.enclosure is not None
    assert any("without the scaled sharpness" in message for message in found.messages("time_limit"))


def test_a_caller_can_stop_it() -> None:
    def stop(progress: wsb.Progress) -> None:
        if progress.phase == "scaled" and progress.hessian_vector_products > 2:
            raise KeyboardInterrupt

    batch = wsb.Batch(X.numpy(), Y.numpy())
    with pytest.raises(KeyboardInterrupt):
        wsb.analyze(wsb.from_module(network()), batch, wsb.Options(scaling="tensor"), progress=stop)


def test_warnings_say_that_they_are_about_the_scaled_matrix() -> None:
    found = analyzed(network(), scaling="elementwise", max_products=12)
    assert any(message.startswith("scaled sharpness: ") for message in found.messages("enclosure_open"))


def test_an_estimate_counts_it() -> None:
    classifier, batch = wsb.from_module(network()), wsb.Batch(X.numpy(), Y.numpy())
    plain = wsb.estimate(classifier, batch)
    more = wsb.estimate(classifier, batch, wsb.Options(scaling="filter"))
    assert {phase.name for phase in more.phases} - {phase.name for phase in plain.phases} == {"scaled"}
    assert more.operations > plain.operations


def test_devices_that_share_the_samples_find_the_same() -> None:
    module = network()
    alone = part(module, "filter").lambda_max
    shared = part(module, "filter", devices=("cpu", "cpu")).lambda_max
    assert np.isclose(shared.upper, alone.upper, rtol=1e-5)
    assert shared.lower <= alone.upper
    assert alone.lower <= shared.upper
