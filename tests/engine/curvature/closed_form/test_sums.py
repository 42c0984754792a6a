"""The closed form against second derivatives by automatic differentiation, over shapes, flags, ways and tiles."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.forms import crossed, thinned
from support.golden import NAMES, Golden
from torch import Tensor

from wsb_engine.curvature.closed_form.activations import derivatives
from wsb_engine.curvature.closed_form.layout import Layout, cheapest_layout, held_bytes
from wsb_engine.curvature.closed_form.mlp import Layer, Network
from wsb_engine.curvature.closed_form.sums import ClosedForm, closed_form, visits_of
from wsb_engine.curvature.losses import automatic
from wsb_engine.errors import ResourceError
from wsb_engine.model import Activation

MEMORY = 1 << 28


@dataclass(frozen=True)
class Case:
    net: Network
    x: Tensor
    y: Tensor
    w: Tensor

    def plan(self, prefer: str = "auto", tile: int | None = None) -> Layout:
        made = cheapest_layout(self.net, len(self.w), memory=MEMORY, itemsize=8, prefer=prefer)
        return made if tile is None else replace(made, tile=tile, kept=2)

    def closed_form(self, layout: Layout) -> ClosedForm:
        return closed_form(self.net, lambda start, stop: (self.x[start:stop], self.y[start:stop]), self.w, layout)

    def parameters(self) -> list[Tensor]:
        """The tensors that are learned, layer by layer, weight before bias."""
        return [t for layer in self.net.layers for t, learns in _tensors(layer) if learns]

    def sample_loss(self, learned: list[Tensor], row: int) -> Tensor:
        rest, a = iter(learned), self.x[row : row + 1]
        for index, layer in enumerate(self.net.layers):
            W, b = (next(rest) if learns else t for t, learns in _tensors(layer, both=True))
            h = a @ W.T if b is None else a @ W.T + b
            last = index == len(self.net.layers) - 1
            a = h if last else derivatives(self.net.activations[index], h)[0]
        return self.net.loss.values(a, self.y[row : row + 1]).sum()

    def sample_hessians(self) -> Tensor:
        """w_s h_s by double backward, (N, P, P)."""
        return torch.stack([self.w[row] * self._hessian(row) for row in range(len(self.w))])

    def _hessian(self, row: int) -> Tensor:
        learned = [tensor.clone().requires_grad_() for tensor in self.parameters()]
        flat = _flat(torch.autograd.grad(self.sample_loss(learned, row), learned, create_graph=True))
        rows = [
            _flat(torch.autograd.grad(entry, learned, retain_graph=True, allow_unused=True), learned) for entry in flat
        ]
        return torch.stack(rows)


def _tensors(layer: Layer, *, both: bool = False) -> list[tuple[Tensor | None, bool]]:
    tensors = [(layer.W, layer.learns_weight), (layer.b, layer.learns_bias)]
    return tensors if both else [pair for pair in tensors if pair[0] is not None]


def _flat(gradients: tuple[Tensor | None, ...], like: list[Tensor] | None = None) -> Tensor:
    filled = [
        torch.zeros_like(like[i]) if gradient is None and like is not None else gradient
        for i, gradient in enumerate(gradients)
    ]
    return torch.cat([gradient.reshape(-1) for gradient in filled if gradient is not None])


def make(
    dims: list[int],
    kind: str = "tanh",
    samples: int = 5,
    seed: int = 0,
    biases: bool = True,
    learns: list[tuple[bool, bool]] | None = None,
    soft: bool = False,
) -> Case:
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    layers = []
    for index, (d_in, d_out) in enumerate(pairwise(dims)):
        weight, bias = (True, biases) if learns is None else learns[index]
        layers.append(Layer(str(index), normal(d_out, d_in), normal(d_out) if biases else None, weight, bias))
    logits = dims[-1]
    net = Network(tuple(layers), tuple(Activation(kind=kind) for _ in layers[1:]), automatic(logits))
    if soft or logits == 1:
        y = torch.softmax(normal(samples, max(logits, 2)), dim=1)[:, -logits:]
    else:
        y = torch.nn.functional.one_hot(torch.randint(logits, (samples,), generator=g), logits).double()
    w = torch.rand(samples, generator=g, dtype=torch.float64) + 0.1
    return Case(net, normal(samples, dims[0]), y, w / w.sum())


CASES = {
    "two_layers": make([3, 4, 3]),
    "wide_last_hidden": make([2, 11, 2]),
    "three_layers": make([3, 4, 5, 3], kind="gelu"),
    "four_layers_soft": make([2, 3, 4, 3, 3], kind="silu", soft=True),
    "five_layers_binary": make([2, 3, 2, 3, 2, 1], kind="softplus"),
    "no_bias": make([3, 4, 3, 2], biases=False),
    "softmax_regression": make([4, 3]),
    "logistic_regression": make([4, 1], samples=7),
    "one_sample": make([3, 4, 3], samples=1),
    "linear_chain": make([3, 4, 3, 2], kind="identity"),
    "elu": make([3, 4, 4, 2], kind="elu"),
    "gelu_tanh": make([3, 4, 4, 2], kind="gelu_tanh"),
    "sigmoid": make([3, 4, 4, 2], kind="sigmoid"),
    "last_layer_only": make([3, 4, 3], learns=[(False, False), (True, True)]),
    "first_layer_only": make([3, 4, 4, 3], learns=[(True, True), (False, False), (False, False)]),
    "biases_only": make([3, 4, 4, 3], learns=[(False, True)] * 3),
    "weights_only": make([3, 4, 4, 3], learns=[(True, False)] * 3),
    "mixed": make([3, 4, 4, 3, 2], learns=[(True, False), (False, True), (False, False), (True, True)]),
}


@pytest.mark.parametrize(("name", "prefer", "tile"), crossed(CASES, ("auto", "pairs", "block"), (None, 2), keep=12))
def test_moments_and_their_parts_equal_automatic_differentiation(name: str, prefer: str, tile: int | None) -> None:
    case = CASES[name]
    result = case.closed_form(case.plan(prefer, tile))
    parts = case.sample_hessians()
    H = parts.sum(dim=0)
    sizes = [layer.parameters for layer in case.net.layers]
    edges = torch.tensor([0, *sizes]).cumsum(0).tolist()
    blocks = torch.tensor([[H[a:b, c:d].square().sum() for c, d in pairwise(edges)] for a, b in pairwise(edges)])
    close = {"rtol": 1e-10, "atol": 1e-12 * float(H.square().sum())}
    assert result.trace == pytest.approx(float(H.trace()), rel=1e-10)
    assert result.frobenius_squared == pytest.approx(float(H.square().sum()), rel=1e-10)
    torch.testing.assert_close(result.block_squares, blocks, **close)
    traces = torch.stack([H.diagonal()[a:b].sum() for a, b in pairwise(edges)])
    torch.testing.assert_close(result.layer_traces, traces, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(result.sample_shares, (parts * H).sum(dim=(1, 2)), **close)
    assert result.self_share == pytest.approx(float(parts.square().sum()), rel=1e-10)


def test_the_factor_form_of_the_last_hidden_layer_is_exact() -> None:
    case = CASES["wide_last_hidden"]
    layout = case.plan("pairs")
    factored = replace(layout, forms={**layout.forms, (0, 0): "factor"})
    H = case.sample_hessians().sum(dim=0)
    result = case.closed_form(factored)
    assert result.trace == pytest.approx(float(H.trace()), rel=1e-10)
    assert result.frobenius_squared == pytest.approx(float(H.square().sum()), rel=1e-10)


def test_a_wide_last_hidden_layer_takes_the_factor_form() -> None:
    net = make([4, 300, 3], samples=2).net
    assert cheapest_layout(net, 1000, memory=1 << 30, itemsize=8).forms[0, 0] == "factor"


def test_many_samples_of_few_parameters_form_blocks() -> None:
    net = make([2, 3, 2], samples=2).net
    assert set(cheapest_layout(net, 10_000, memory=1 << 30, itemsize=8).forms.values()) == {"block"}


def deep(dtype: torch.dtype = torch.float64) -> Case:
    case = make([4, 24, 24, 24, 3], samples=120)
    layers = tuple(replace(l, W=l.W.to(dtype), b=None if l.b is None else l.b.to(dtype)) for l in case.net.layers)
    return Case(replace(case.net, layers=layers), case.x.to(dtype), case.y.to(dtype), case.w)


@pytest.mark.parametrize("memory", [1 << 21, 1 << 22, 1 << 23, 1 << 26])
def test_every_pair_of_tiles_meets_once_however_many_are_kept(memory: int) -> None:
    layout = cheapest_layout(deep().net, 120, memory=memory, itemsize=8, prefer="pairs")
    starts = range(0, 120, layout.tile)
    met = [(row, other) for _, rows, other in visits_of(layout, 120) for row in rows]
    assert sorted(met) == [(row, other) for row in starts for other in starts if row <= other]


def test_tiles_are_made_fewer_times_the_more_memory_there_is() -> None:
    made = []
    for memory in (1 << 21, 1 << 22, 1 << 23, 1 << 26):
        case, samples = deep(), 0

        def source(start: int, stop: int, case: Case = case) -> tuple[Tensor, Tensor]:
            nonlocal samples
            samples += stop - start
            return case.x[start:stop], case.y[start:stop]

        closed_form(case.net, source, case.w, cheapest_layout(case.net, 120, memory=memory, itemsize=8, prefer="pairs"))
        made.append(samples)
    assert made == sorted(made, reverse=True)
    assert made[0] > made[1]
    assert made[-1] == 120


def test_float32_agrees_with_float64_to_single_precision() -> None:
    case = make([6, 8, 5, 4], samples=40)
    layers = tuple(
        replace(layer, W=layer.W.float(), b=None if layer.b is None else layer.b.float()) for layer in case.net.layers
    )
    single = Case(replace(case.net, layers=layers), case.x.float(), case.y.float(), case.w)
    for prefer in ("pairs", "block"):
        want, got = case.closed_form(case.plan(prefer)), single.closed_form(case.plan(prefer))
        assert got.frobenius_squared == pytest.approx(want.frobenius_squared, rel=1e-4)
        assert got.trace == pytest.approx(want.trace, rel=1e-4)


def any_way_of_summing(dims: list[int], samples: int, tile: int, prefer: str, seed: int) -> None:
    case = make(dims, samples=samples, seed=seed)
    want = case.closed_form(case.plan("pairs"))
    got = case.closed_form(case.plan(prefer, tile))
    assert got.trace == pytest.approx(want.trace, rel=1e-9, abs=1e-12)
    assert got.frobenius_squared == pytest.approx(want.frobenius_squared, rel=1e-9, abs=1e-14)


WAYS = given(
    dims=st.lists(st.integers(1, 5), min_size=2, max_size=5),
    samples=st.integers(1, 9),
    tile=st.integers(1, 4),
    prefer=st.sampled_from(["auto", "pairs", "block"]),
    seed=st.integers(0, 10**6),
)
test_the_way_of_summing_does_not_matter = settings(deadline=None, max_examples=15)(WAYS(any_way_of_summing))
test_the_way_of_summing_does_not_matter_on_more_examples = pytest.mark.slow(
    settings(deadline=None, max_examples=40)(WAYS(any_way_of_summing))
)


@settings(deadline=None, max_examples=25)
@given(dims=st.lists(st.integers(1, 5), min_size=2, max_size=4), seed=st.integers(0, 10**6), data=st.data())
def test_the_order_of_samples_and_their_repetition_do_not_matter(
    dims: list[int], seed: int, data: st.DataObject
) -> None:
    case = make(dims, seed=seed)
    order = torch.tensor(data.draw(st.permutations(range(len(case.w)))))
    twice = torch.cat([order, order])
    repeated = Case(case.net, case.x[twice], case.y[twice], case.w[twice] / 2)
    want, got = case.closed_form(case.plan()), repeated.closed_form(repeated.plan())
    assert got.trace == pytest.approx(want.trace, rel=1e-9, abs=1e-12)
    assert got.frobenius_squared == pytest.approx(want.frobenius_squared, rel=1e-9, abs=1e-14)


def test_a_sample_of_weight_zero_changes_nothing() -> None:
    case = make([3, 4, 3], samples=4)
    w = torch.tensor([0.5, 0.25, 0.25, 0.0], dtype=torch.float64)
    without = Case(case.net, case.x[:3], case.y[:3], w[:3])
    kept = replace(case, w=w)
    assert kept.closed_form(kept.plan()).frobenius_squared == pytest.approx(
        without.closed_form(without.plan()).frobenius_squared, rel=1e-12
    )


@pytest.mark.parametrize("name", thinned(NAMES, 4))
def test_golden_moments_hold_in_every_way_of_summing(name: str) -> None:
    golden = Golden(name)
    targets = golden.targets()
    case = Case(golden.network(), torch.from_numpy(golden.x), targets.y, targets.weights)
    for prefer in ("pairs", "block"):
        result = case.closed_form(case.plan(prefer, tile=7))
        assert result.trace == pytest.approx(golden.expected["trace"], rel=1e-12)
        assert result.frobenius_squared == pytest.approx(golden.expected["frobenius_squared"], rel=1e-12)


def test_coherence_is_one_for_repeated_samples_and_zero_for_one() -> None:
    case = make([3, 4, 3], samples=2)
    twins = Case(case.net, case.x[[0, 0]], case.y, case.w)
    assert twins.closed_form(twins.plan()).coherence == pytest.approx(1.0)
    one = make([3, 4, 3], samples=1)
    assert one.closed_form(one.plan()).coherence == 0.0


def test_progress_reaches_one_and_may_stop_the_sum() -> None:
    case = make([3, 4, 3], samples=20)
    seen: list[float] = []
    layout = case.plan("pairs", tile=3)
    source = lambda start, stop: (case.x[start:stop], case.y[start:stop])  # noqa: E731
    closed_form(case.net, source, case.w, layout, progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0

    def stop(fraction: float) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        closed_form(case.net, source, case.w, layout, progress=stop)


@pytest.mark.parametrize("memory", [1 << 10, 1 << 14])
@pytest.mark.parametrize("prefer", ["auto", "pairs", "block"])
def test_the_memory_that_a_refusal_names_is_enough(memory: int, prefer: Literal["auto", "pairs", "block"]) -> None:
    net = deep().net
    with pytest.raises(ResourceError) as caught:
        cheapest_layout(net, 120, memory=memory, itemsize=8, prefer=prefer)
    needed = caught.value.details["needed"]
    assert str(needed) in caught.value.advice
    assert cheapest_layout(net, 120, memory=needed, itemsize=8, prefer=prefer).tile >= 1
    assert held_bytes(net, cheapest_layout(net, 120, memory=needed, itemsize=8, prefer=prefer), 120) <= 1.25 * needed
