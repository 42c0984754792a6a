"""The largest stable learning rate: against torch's own optimizers on quadratics, and at the edge of stability."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import pytest
import safetensors.torch
import torch
from pydantic import ValidationError
from support.forms import crossed, thinned
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, NAdam, Optimizer, RMSprop

import wsb_engine as wsb
from wsb_engine.errors import OptionsError
from wsb_engine.report import StableSteps

State = Mapping[str, Tensor]
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(20, 3, generator=GENERATOR).double() * torch.tensor([1.0, 3.0, 0.3]).double()
ZEROS = torch.zeros(20, 2).double()
V = torch.rand(2, 3, generator=GENERATOR).double() ** 4 + 1e-3
"""Second moments of the weights."""


def linear() -> nn.Linear:
    """A linear model close to its optimum, 0: the loss is a quadratic, also with a decay of the weights."""
    module = nn.Linear(3, 2, bias=False).double()
    with torch.no_grad():
        module.weight.copy_(1e-8 * torch.randn(2, 3, generator=torch.Generator().manual_seed(1)))
    return module


def answer(settings: dict[str, Any], state: Any = None, **options: Any) -> StableSteps:
    options = {"loss": "squared_error", **options}
    batch = wsb.Batch(X.numpy(), ZEROS.numpy())
    report = wsb.analyze(
        wsb.from_module(linear()), batch, wsb.Options(optimizer=settings, **options), optimizer_state=state
    )
    assert report.optimizer is not None
    return report.optimizer


def growth(optimizer: Callable[[nn.Linear], Optimizer], held: Mapping[str, Tensor], steps: int = 400) -> float:
    """‖w‖ after many steps of torch's optimizer over that before, with this part of its state held fixed."""
    module = linear()
    steps_with, before = optimizer(module), float(module.weight.detach().norm())
    if held:
        # The optimizer itself makes its state.
        nn.functional.mse_loss(module(X), ZEROS).backward()
        steps_with.step()
        with torch.no_grad():
            module.weight.copy_(linear().weight)
        steps_with.state[module.weight]["exp_avg" if "step" in held else "momentum_buffer"].zero_()
    for _ in range(steps):
        steps_with.zero_grad()
        nn.functional.mse_loss(module(X), ZEROS).backward()
        for key, value in held.items():
            steps_with.state[module.weight][key].copy_(value)
        steps_with.step()
        found = float(module.weight.detach().norm())
        if found > 1e4 * before:
            return math.inf
    return found / before


def adam_like(t: int, beta2: float, **more: Tensor) -> dict[str, Tensor]:
    """State that the next step makes that of step t with second moments V, but for tiny gradients."""
    return {"step": torch.tensor(float(t - 1)), "exp_avg_sq": V / beta2, **more}


SGDS = [
    {},
    {"momentum": 0.5},
    {"momentum": 0.9},
    {"momentum": 0.9, "nesterov": True},
    {"momentum": 0.5, "nesterov": True},
    {"momentum": 0.9, "dampening": 0.5},
    {"momentum": 0.5, "weight_decay": 0.7},
    {"momentum": 0.9, "nesterov": True, "weight_decay": 0.7},
]


def stands(found: StableSteps, make: Callable[[float], Callable[[nn.Linear], Optimizer]], held: State) -> None:
    """Just below the certified rate the steps converge, and 20 % above it they diverge."""
    rate = found.largest_stable_learning_rate
    assert rate is not None
    assert rate.upper <= rate.lower * (1 + 3e-6)
    assert growth(make(0.98 * rate.lower), held) < 0.5
    assert growth(make(1.2 * rate.upper), held) == math.inf


@pytest.mark.parametrize("settings", thinned(SGDS, 3), ids=str)
def test_gradient_descent_converges_below_its_limit_and_diverges_above(settings: dict[str, Any]) -> None:
    found = answer({"kind": "sgd", **settings})
    stands(found, lambda rate: lambda module: SGD(module.parameters(), lr=rate, **settings), {})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("t", "settings"),
    crossed([1, 5, 50, 100_000], [{}, {"weight_decay": 0.7}, {"betas": (0.5, 0.9)}, {"amsgrad": True}]),
    ids=str,
)
def test_adam_converges_below_its_limit_and_diverges_above(t: int, settings: dict[str, Any]) -> None:
    beta2 = settings.get("betas", (0.9, 0.999))[1]
    key = "max_exp_avg_sq" if settings.get("amsgrad") else "exp_avg_sq"
    found = answer({"kind": "adam", **settings}, {f"weight.{key}": V, "step": t})
    assert found.step == t
    held = adam_like(t, beta2)
    if settings.get("amsgrad"):
        held = {**held, "exp_avg_sq": V / 2, "max_exp_avg_sq": V}
    stands(found, lambda rate: lambda module: Adam(module.parameters(), lr=rate, **settings), held)


@pytest.mark.slow
@pytest.mark.parametrize("decay", thinned([0.0, 0.7, 30.0], 2))
def test_adamw_converges_below_its_limit_and_diverges_above(decay: float) -> None:
    found = answer({"kind": "adamw", "weight_decay": decay}, {"weight.exp_avg_sq": V, "weight.step": 50.0})
    held = adam_like(50, 0.999)
    stands(found, lambda rate: lambda module: AdamW(module.parameters(), lr=rate, weight_decay=decay), held)


@pytest.mark.slow
@pytest.mark.parametrize("t", thinned([1, 3, 50, 1000, 100_000], 2))
def test_nadam_converges_below_its_limit_and_diverges_above(t: int) -> None:
    found = answer({"kind": "nadam"}, {"weight.exp_avg_sq": V, "step": t})
    earlier = math.prod(0.9 * (1 - 0.5 * 0.96 ** (0.004 * i)) for i in range(1, min(t, 2000)))
    held = adam_like(t, 0.999, mu_product=torch.tensor(earlier))
    stands(found, lambda rate: lambda module: NAdam(module.parameters(), lr=rate), held)


def test_nadam_has_the_limits_of_the_mathematics() -> None:
    limits = [answer({"kind": "nadam"}, {"weight.exp_avg_sq": V, "step": t}).limit for t in (1000, 10**7)]
    assert limits == pytest.approx([3.93, 13.57], abs=0.005)


@pytest.mark.parametrize(
    "settings", thinned([{}, {"momentum": 0.9}, {"momentum": 0.5, "weight_decay": 0.7}], 2), ids=str
)
def test_rmsprop_converges_below_its_limit_and_diverges_above(settings: dict[str, Any]) -> None:
    found = answer({"kind": "rmsprop", **settings}, {"weight.square_avg": V})
    held = {"square_avg": V / 0.99} if settings else {}

    def make(rate: float) -> Callable[[nn.Linear], Optimizer]:
        return lambda module: RMSprop(module.parameters(), lr=rate, **settings)

    if settings:
        stands(found, make, held)
        return
    # Without momentum there is no buffer, so the moments are kept by decaying by 1.
    rate = found.largest_stable_learning_rate

    def plain(lr: float) -> float:
        w, A = linear().weight.detach().clone(), 2 * X.T @ X / X.numel() * 3 / 2
        start = w.norm()
        for _ in range(400):
            w -= lr * (w @ A) / (V.sqrt() + 1e-8)
        return float(w.norm() / start)

    assert plain(0.98 * rate.lower) < 0.5
    assert plain(1.2 * rate.upper) > 1e4


def test_a_rate_is_compared_with_the_largest_stable_one() -> None:
    found = answer({"kind": "sgd", "momentum": 0.9, "learning_rate": 0.1})
    assert found.ratio.lower <= 0.1 * found.lambda_max.upper / 3.8 <= found.ratio.upper * (1 + 1e-12)
    assert answer({"kind": "sgd"}, learning_rate=0.1).learning_rate == 0.1
    assert answer({"kind": "sgd"}).ratio is None


def test_gradient_descent_needs_no_products_beyond_the_enclosure() -> None:
    assert answer({"kind": "sgd"}).hessian_vector_products is None
    alone = answer({"kind": "sgd", "weight_decay": 0.1}, enclosure=False, moments="none")
    assert alone.hessian_vector_products > 0
    assert alone.lambda_max.lower <= answer({"kind": "sgd", "weight_decay": 0.1}).lambda_max.upper


def test_curvature_that_is_not_positive_limits_no_rate() -> None:
    # A logit that is 0 whatever the weights: H is 0.
    module = nn.Linear(2, 1, bias=False).double()
    batch = wsb.Batch(np.zeros((4, 2)), np.zeros((4, 1)))
    options = wsb.Options(loss="squared_error", optimizer={"kind": "sgd", "learning_rate": 0.1})
    found = wsb.analyze(wsb.from_module(module), batch, options).optimizer
    assert found.largest_stable_learning_rate is None or found.largest_stable_learning_rate.upper > 1e300
    assert found.ratio is None or found.ratio.lower < 1e-300


def flat(decay: float) -> StableSteps:
    """The answer of AdamW where H is 0."""
    module = nn.Linear(2, 1, bias=False).double()
    batch, state = wsb.Batch(np.zeros((4, 2)), np.zeros((4, 1))), {"weight.exp_avg_sq": V[:1, :2], "step": 50}
    settings = {"kind": "adamw", "weight_decay": decay}
    options = wsb.Options(loss="squared_error", optimizer=settings)
    found = wsb.analyze(wsb.from_module(module), batch, options, optimizer_state=state).optimizer
    assert found is not None
    return found


def test_a_decay_apart_from_the_gradient_limits_the_rate_where_nothing_curves() -> None:
    # Weights shrink by 1 − ημ, which is below −1 for η > 2/μ.
    rate = flat(0.5).largest_stable_learning_rate
    assert rate is not None
    assert rate.lower <= 4 <= rate.upper
    assert rate.upper == pytest.approx(4)


@pytest.mark.parametrize("size", [5e-324, 1.5e308])
def test_second_moments_at_the_ends_of_the_range_scale_steps_like_others(size: float) -> None:
    v, b = torch.full((2, 3), size, dtype=torch.float64), 1 - 0.9**3
    found = answer({"kind": "adam", "betas": (0.0, 0.9), "eps": 0.0}, {"weight.exp_avg_sq": v, "step": 3})
    plain = answer({"kind": "sgd"}, relative_gap=1e-10).lambda_max
    scaled = found.lambda_max.lower * (math.sqrt(size) / math.sqrt(b))
    assert scaled <= plain.upper * (1 + 1e-12)
    assert found.lambda_max.upper * (math.sqrt(size) / math.sqrt(b)) >= plain.lower * (1 - 1e-12)
    assert scaled > 0


def test_a_state_is_only_read() -> None:
    v = V.clone()
    answer({"kind": "adam"}, {"weight.exp_avg_sq": v, "step": 3})
    assert torch.equal(v, V)


def test_nadam_with_a_beta_next_to_1_has_a_limit_without_cancellation() -> None:
    beta, decay, t = 1 - 2**-50, 0.4, 2000
    with mpmath.workdps(60):
        mu = [beta * (1 - mpmath.mpf("0.5") * mpmath.mpf(0.96) ** (i * mpmath.mpf(decay))) for i in range(1, t + 2)]
        product = mpmath.fprod(mu[:-1])
        a, b = (1 - mu[-2]) / (1 - product), mu[-1] / (1 - product * mu[-1])
        expected = float(2 / (a + b * (1 - beta) / (1 + mpmath.mpf(beta))))
    settings = {"kind": "nadam", "betas": (beta, 0.999), "momentum_decay": decay}
    found = answer(settings, {"weight.exp_avg_sq": V, "step": t})
    assert found.limit == pytest.approx(expected, rel=2**-46, abs=0)


MISSING = {
    "no state": (None, "optimizer_state_missing"),
    "no moments": ({"step": 1}, "optimizer_state_incomplete"),
    "no step": ({"weight.exp_avg_sq": V}, "optimizer_state_incomplete"),
    "another shape": ({"weight.exp_avg_sq": V[:1], "step": 1}, "optimizer_state_invalid"),
    "transposed": ({"weight.exp_avg_sq": V.T, "step": 1}, "optimizer_state_invalid"),
    "negative": ({"weight.exp_avg_sq": -V, "step": 1}, "optimizer_state_invalid"),
    "not a number": ({"weight.exp_avg_sq": V * math.nan, "step": 1}, "optimizer_state_invalid"),
    "infinite": ({"weight.exp_avg_sq": V / 0, "step": 1}, "optimizer_state_invalid"),
    "complex": ({"weight.exp_avg_sq": V * 1j, "step": 1}, "optimizer_state_invalid"),
    "no array": ({"weight.exp_avg_sq": "many", "step": 1}, "optimizer_state_invalid"),
    "step 0": ({"weight.exp_avg_sq": V, "step": 0}, "optimizer_state_invalid"),
    "half a step": ({"weight.exp_avg_sq": V, "step": 1.5}, "optimizer_state_invalid"),
    "no file": (b"PK", "optimizer_state_invalid"),
}


@pytest.mark.parametrize("case", MISSING)
def test_a_state_that_does_not_fit_is_refused_with_a_code(case: str) -> None:
    state, code = MISSING[case]
    with pytest.raises(OptionsError) as refused:
        answer({"kind": "adam"}, state)
    assert refused.value.code == code
    assert refused.value.advice


def test_a_state_of_no_use_or_of_another_name_is_refused() -> None:
    with pytest.raises(OptionsError, match="optimizer_state_unused"):
        answer({"kind": "sgd"}, {"step": 1})
    content = safetensors.torch.save({"weight.exp_avg_sq": V, "step": torch.tensor(3.0)})
    with pytest.raises(OptionsError, match="optimizer_state_differs"):
        answer({"kind": "adam", "state": "sha256:" + "0" * 64}, content)
    with pytest.raises(OptionsError, match="divided by 0"):
        answer({"kind": "adam", "eps": 0.0}, {"weight.exp_avg_sq": V * 0, "step": 1})


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "lion"},
        {"kind": "sgd", "betas": (0.5, 0.5)},
        {"kind": "adam", "momentum": 0.9},
        {"kind": "sgd", "nesterov": True},
        {"kind": "sgd", "momentum": 1.0},
        {"kind": "adam", "eps": -1.0},
        {"kind": "adam", "colour": 1},
    ],
    ids=str,
)
def test_settings_that_no_limit_is_known_for_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        wsb.Options(optimizer=settings)


def test_a_file_of_torch_is_read_by_path_and_by_content(tmp_path: Path) -> None:
    module = linear()
    optimizer = Adam(module.parameters(), lr=1e-3)
    nn.functional.mse_loss(module(X), ZEROS + 1).backward()
    optimizer.step()
    # The snippet of the guide.
    names = {parameter: name for name, parameter in module.named_parameters()}
    moments = {
        f"{names[parameter]}.{key}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }
    path = tmp_path / "optimizer.safetensors"
    safetensors.torch.save_file(moments, path)
    by_path, by_content = answer({"kind": "adam"}, path), answer({"kind": "adam"}, path.read_bytes())
    assert by_path == by_content
    assert (by_path.step, len(by_path.state_sha256)) == (1, 64)


def network() -> tuple[nn.Sequential, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(120, 8, generator=generator).double()
    y = nn.functional.one_hot((x[:, 0] * x[:, 1] > 0).long() + (x[:, 2] > 0).long(), 3).double()
    torch.manual_seed(1)
    layers = (nn.Linear(8, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 3))
    return nn.Sequential(*layers).double(), x, y


def trained(optimizer: Callable[[nn.Module], Optimizer], steps: int) -> tuple[nn.Sequential, wsb.Batch, Optimizer]:
    module, x, y = network()
    made = optimizer(module)
    for _ in range(steps):
        made.zero_grad()
        nn.functional.mse_loss(module(x), y).backward()
        made.step()
    return module, wsb.Batch(x.numpy(), y.numpy()), made


@pytest.mark.slow
def test_gradient_descent_trains_at_the_edge_that_is_certified() -> None:
    module, batch, _ = trained(lambda module: SGD(module.parameters(), lr=0.45), 1200)
    settings = {"kind": "sgd", "learning_rate": 0.45}
    options = wsb.Options(loss="squared_error", optimizer=settings, moments="none", relative_gap=1e-3, ends="largest")
    found = wsb.analyze(wsb.from_module(module), batch, options).optimizer
    assert 0.9 <= found.ratio.lower <= found.ratio.upper <= 1.1


@pytest.mark.slow
def test_adam_trains_at_the_edge_that_is_certified() -> None:
    module, batch, made = trained(lambda module: Adam(module.parameters(), lr=2e-3, eps=1e-7), 1800)
    names = {parameter: name for name, parameter in module.named_parameters()}
    state = {f"{names[p]}.{key}": value for p, each in made.state.items() for key, value in each.items()}
    settings = {"kind": "adam", "learning_rate": 2e-3, "eps": 1e-7}
    options = wsb.Options(loss="squared_error", optimizer=settings, moments="none", relative_gap=1e-3, ends="largest")
    found = wsb.analyze(wsb.from_module(module), batch, options, optimizer_state=state).optimizer
    assert found.limit == pytest.approx(38)
    assert 0.85 <= found.ratio.lower <= found.ratio.upper <= 1.15


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ({"kind": "momentum", "momentum": 0.5, "dampening": 0.1}, {"kind": "sgd", "momentum": 0.5, "dampening": 0.1}),
        ({"kind": "nesterov", "momentum": 0.5}, {"kind": "sgd", "momentum": 0.5, "nesterov": True}),
        ({"kind": "amsgrad", "betas": (0.8, 0.9)}, {"kind": "adam", "amsgrad": True, "betas": (0.8, 0.9)}),
    ],
    ids=["momentum", "nesterov", "amsgrad"],
)
def test_a_short_name_is_a_kind_with_its_setting(short: dict[str, Any], long: dict[str, Any]) -> None:
    state = {"weight.max_exp_avg_sq": V, "step": 7} if "betas" in short else None
    found, expected = answer(short, state), answer(long, state)
    assert (found.kind, found.limit, found.lambda_max) == (short["kind"], expected.limit, expected.lambda_max)
    assert found.settings == expected.settings
    written = wsb.Options(optimizer=short).model_dump_json()
    assert wsb.Options.model_validate_json(written) == wsb.Options(optimizer=short)


@pytest.mark.parametrize(
    "settings", [{"kind": "momentum"}, {"kind": "nesterov"}, {"kind": "amsgrad", "amsgrad": False}]
)
def test_a_short_name_without_its_setting_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        wsb.Options(optimizer=settings)
