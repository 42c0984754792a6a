"""The largest learning rate at which an optimizer's full-batch steps are stable (mathematics.md, section 13).

With the scales P of the steps held fixed, a direction of curvature λ of P^(−½) (H + μI) P^(−½) converges on the
quadratic model as long as ηλ is below a limit that depends on the kind of momentum.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

import torch
from torch import Tensor

from wsb_engine import report as r
from wsb_engine.analysis.monitor import Monitor
from wsb_engine.analysis.problem import Problem
from wsb_engine.analysis.questions.preconditioned import enclosed, in_units_of_d, interval
from wsb_engine.curvature.products.autodiff import HessianProduct
from wsb_engine.curvature.products.scaled import Diagonal
from wsb_engine.errors import OptionsError
from wsb_engine.optimizer import Optimizer
from wsb_engine.optimizer_state import FORMAT, OptimizerState, StateSource, read_optimizer_state
from wsb_engine.options import Options

SEED = 0x7F4A7C15
"""Separates the random vectors of this question from others of the same seed."""
SCALE_ERROR = 32 * 2.0**-53
"""Relative error of P^(−½): of a dozen operations, with powers of β among them."""
ROUNDING = 2.0**-46
"""Relative error of limits and rates, which a few operations give from settings in float64."""
ABOUT = "stable learning rate"
"""What warnings are about."""
_WARMING, _BASE = 0.96, 0.5
"""Constants of NAdam's scheduled momentum, μ_t = β₁ (1 − ½ · 0.96^(tψ))."""
_TERMS = 60
"""Terms of a series whose k-th term is below 2^-k."""


@dataclass(frozen=True)
class Steps:
    """How an optimizer steps at a point of its training."""

    optimizer: Optimizer
    learning_rate: float | None
    scales: Tensor | None
    """P^(−½), (P,) float64; None for 1."""
    limit: float
    """Largest ηλ."""
    step: int | None
    state_sha256: str | None


def steps_of(problem: Problem, options: Options, source: StateSource | None) -> Steps | None:
    """Read how the optimizer of the options steps; None without one.

    Args:
        problem: The analysis.
        options: Its options.
        source: State of the optimizer.

    Raises:
        OptionsError: ``optimizer_state_missing``, ``optimizer_state_unused``, ``optimizer_state_differs``,
            ``optimizer_state_incomplete``, ``optimizer_state_invalid``.
    """
    optimizer = options.optimizer
    if optimizer is None or not optimizer.needs_state:
        if source is not None:
            what = "no optimizer is given" if optimizer is None else f"{optimizer.kind} steps without second moments"
            raise OptionsError(
                f"a state was given, but {what}",
                code="optimizer_state_unused",
                advice="Leave the state out, or set the option optimizer to the kind that it belongs to.",
            )
        if optimizer is None:
            return None
        return Steps(optimizer, _rate(optimizer, options), None, _limit(optimizer, None), None, None)
    if source is None:
        raise OptionsError(
            f"{optimizer.kind} scales its steps by second moments, and no state was given",
            code="optimizer_state_missing",
            advice=f"Give it as optimizer_state (wsb analyze --optimizer-state FILE). {FORMAT}",
        )
    state = read_optimizer_state(source)
    if optimizer.state is not None and optimizer.state != f"sha256:{state.sha256}":
        raise OptionsError(
            f"the option optimizer names the state {optimizer.state}, and the state given is another",
            code="optimizer_state_differs",
            advice="Give the state that it names, or leave state out of the option.",
        )
    scales, counts = _scales(problem, optimizer, state)
    step = counts.pop() if len(counts) == 1 else None
    if optimizer.kind == "nadam" and step is None:
        raise OptionsError(
            "the parameters have taken different numbers of steps, so that nadam's momentum is not the same for all",
            code="optimizer_state_invalid",
            advice="Select parameters of one number of steps with the option parameters.",
        )
    return Steps(optimizer, _rate(optimizer, options), scales, _limit(optimizer, step), step, state.sha256)


def _rate(optimizer: Optimizer, options: Options) -> float | None:
    return options.learning_rate if optimizer.learning_rate is None else optimizer.learning_rate


def _scales(problem: Problem, optimizer: Optimizer, state: OptimizerState) -> tuple[Tensor, set[int]]:
    """Return P^(−½) in the order of the parameters, and the numbers of steps of its tensors."""
    rmsprop = optimizer.kind == "rmsprop"
    key = "square_avg" if rmsprop else "max_exp_avg_sq" if optimizer.amsgrad else "exp_avg_sq"
    parts, counts = {}, set()
    for name in problem.objective.selected:
        root = state.moments(name, key, problem.model.parameters[name]).sqrt()
        warmth = 1.0
        if not rmsprop:
            step = state.step(name)
            counts.add(step)
            # Roots, since the quotient of second moments themselves may leave the range of numbers or lose digits.
            root.div_(math.sqrt(_one_minus_power(optimizer.betas[1], step)))
            # NAdam's own factors are part of its limit.
            warmth = 1.0 if optimizer.kind == "nadam" else _one_minus_power(optimizer.betas[0], step)
        P = root.add_(optimizer.eps).mul_(warmth)
        if not bool((P > 0).all()):
            raise OptionsError(
                f"{name}.{key} is 0 in places, and so is eps: steps would be divided by 0",
                code="optimizer_state_invalid",
                advice="Set eps as in the training.",
            )
        parts[name] = P.rsqrt_()
    return problem.objective.flatten(parts), counts


def _one_minus_power(beta: float, step: int) -> float:
    """Compute 1 − β^t without cancellation."""
    return 1.0 if beta == 0 else -math.expm1(step * math.log(beta))


def _limit(optimizer: Optimizer, step: int | None) -> float:
    """Return the largest ηλ without decoupled weight decay (Cohen et al., arXiv 2103.00065 and 2207.14484)."""
    beta = optimizer.momentum
    match optimizer.kind:
        case "sgd" | "nesterov" if optimizer.nesterov:
            return 2 * (1 + beta) / (1 + 2 * beta)
        case "sgd" | "momentum":
            return 2 * (1 + beta) / (1 - optimizer.dampening)
        case "rmsprop":
            return 2 * (1 + beta)
        case "nadam":
            return _nadam_limit(optimizer, step or 1)
        case _:
            beta = optimizer.betas[0]
            return 2 * (1 + beta) / (1 - beta)


def _nadam_limit(optimizer: Optimizer, step: int) -> float:
    """Return 2/(a + b(1 − β₁)/(1 + β₁)) with the factors a of the gradient and b of its average.

    At the limit a direction changes its sign at every step, θ′ = −θ and m′ = −m, so that m′ = (1 − β₁)/(1 + β₁) λθ.
    """
    beta, decay = optimizer.betas[0], optimizer.momentum_decay

    def warming(t: int) -> float:
        return beta * _BASE * math.exp(t * decay * math.log(_WARMING))

    product = math.exp(_log_product(beta, decay * math.log(_WARMING), step)) if beta else 0.0
    following = beta - warming(step + 1)
    # 1 − μ_t, which cancels for β₁ → 1.
    a = (1 - beta + warming(step)) / (1 - product)
    b = following / (1 - product * following)
    return 2 / (a + b * (1 - beta) / (1 + beta))


def _log_product(beta: float, rate: float, steps: int) -> float:
    """Compute ln Π_t, t ≥ 1, of μ_i = β (1 − ½ e^(i·rate)), rate ≤ 0, from geometric sums.

    −ln(1 − x) = Σ_k x^k/k with x = ½ e^(i·rate), and Σ_i e^(k·i·rate) has a closed form.
    """
    total = steps * math.log(beta)
    for k in range(1, _TERMS + 1):
        powers = steps if rate == 0 else math.exp(k * rate) * math.expm1(k * steps * rate) / math.expm1(k * rate)
        total -= _BASE**k / k * powers
    return total


def stable_steps(
    problem: Problem,
    product: HessianProduct,
    steps: Steps | None,
    enclosure: r.CertifiedInterval | None,
    options: Options,
    monitor: Monitor,
) -> r.StableSteps | None:
    """Certify the largest stable learning rate.

    Args:
        problem: The analysis.
        product: Multiplies single vectors by H.
        steps: How the optimizer steps; None without one.
        enclosure: λ_max(H) in true units, which answers for steps that are not scaled; None if it is not enclosed.
        options: Options of the analysis.
        monitor: Clock, progress and warnings.

    Returns:
        The part in true units; None without an optimizer or, with a warning, if nothing could be said.

    Raises:
        TimeLimitError: ``time_limit`` if there was no time for a single product.
        ResourceError: ``overflow``.
    """
    if steps is None:
        return None
    mu = 0.0 if steps.optimizer.decouples else steps.optimizer.weight_decay
    if steps.scales is None and enclosure is not None:
        return _part(steps, _shifted(enclosure, mu))
    scales, device = steps.scales, problem.objective.device
    if scales is None:
        scales = torch.ones(problem.objective.parameters, dtype=torch.float64)
    error = 0.0 if steps.scales is None else SCALE_ERROR
    diagonal = Diagonal.of(scales.to(device), error=error, shift=mu * problem.objective.scale)
    with monitor.aside(ABOUT):
        found = enclosed(problem, product, diagonal, options, monitor, seed=options.seed ^ SEED)
    if found is None:
        return None
    part = _part(steps, in_units_of_d(found.lambda_max, problem, diagonal))
    rounding = None if found.rounding is None else in_units_of_d(found.rounding, problem, diagonal)
    return part.model_copy(
        update={"hessian_vector_products": found.products, "stopped_by": found.stopped_by, "rounding": rounding}
    )


def _shifted(found: r.CertifiedInterval, by: float) -> r.CertifiedInterval:
    """Add a number that is not negative to both ends, rounded outwards."""
    if not by:
        return found
    lower, upper = math.nextafter(found.lower + by, -math.inf), math.nextafter(found.upper + by, math.inf)
    return interval(found, lower, upper)


def _part(steps: Steps, found: r.CertifiedInterval) -> r.StableSteps:
    optimizer, rate = steps.optimizer, steps.learning_rate
    decay = optimizer.weight_decay if optimizer.decouples else 0.0
    stable = _largest_rate(found, steps.limit, decay)
    ratio = None
    if stable is not None and rate is not None:
        low, high = rate / stable.upper * (1 - ROUNDING), rate / stable.lower * (1 + ROUNDING)
        ratio = r.Interval(lower=low, upper=min(high, sys.float_info.max))
    return r.StableSteps(
        kind=optimizer.kind,
        settings=_reported(optimizer),
        learning_rate=rate,
        limit=steps.limit,
        lambda_max=found,
        largest_stable_learning_rate=stable,
        ratio=ratio,
        step=steps.step,
        state_sha256=steps.state_sha256,
    )


def _reported(optimizer: Optimizer) -> r.OptimizerSettings:
    values = {name: getattr(optimizer, name) for name in r.OptimizerSettings.model_fields}
    return r.OptimizerSettings(**{**values, "betas": list(optimizer.betas)})


def _largest_rate(found: r.CertifiedInterval, limit: float, decay: float) -> r.Interval | None:
    """Return 1/(λ/limit + μ/2), where μ decays weights apart from the gradient; rounded outwards.

    A step that decays the weights by 1 − ημ is stable for ηλ ≤ (2 − ημ) limit/2. The largest number of all stands for
    rates beyond the range of numbers.
    """

    def largest(curvature: float, outwards: float) -> float:
        # For λ < 0 the terms cancel, so that rounding is relative to their sizes.
        per_rate = curvature / limit + decay / 2 + outwards * (abs(curvature) / limit + decay / 2)
        return 1 / per_rate if per_rate * sys.float_info.max > 1 else math.inf

    if found.upper / limit + decay / 2 <= 0:
        return None
    lower = min(largest(found.upper, ROUNDING), sys.float_info.max)
    upper = largest(found.lower, -ROUNDING)
    return r.Interval(lower=max(lower, math.ulp(0.0)), upper=min(upper, sys.float_info.max))
