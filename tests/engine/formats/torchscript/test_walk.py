"""Control flow, containers, state and writing in place: what scripts do besides computing with tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.forms import crossed
from torch import Tensor, nn

import wsb_engine as wsb
from wsb_engine import ModelError, load_model
from wsb_engine.curvature.tracing.smoothness import nonsmooth_operators

X = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(0)).double()


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
        self.last = nn.Linear(3, 2)
        self.register_buffer("scale", torch.ones(3))


class OverShapes(Base):
    """Branches and loops over sizes, and a list that grows."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 3:
            raise ValueError(f"got {x.dim()} axes")
        parts: list[Tensor] = []
        for index in range(x.size(1)):
            part = torch.tanh(self.layers[0](x[:, index]))
            if index % 2 == 1:
                part = part * 0.5
            parts.append(part)
        total = torch.zeros(3)
        for part in parts:
            total = total + part
        steps, count = x.shape[1], 0
        while steps > 1:
            steps = steps // 2
            count += 1
        return self.last(total / count)  # type: ignore[no-any-return]


class OverContainers(Base):
    """Dictionaries, tuples, strings and optional arguments."""

    def pair(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return x, {"left": torch.tanh(x), "right": torch.sigmoid(x)}

    def forward(self, x: Tensor, which: str = "left", factor: float | None = None) -> Tensor:
        plain, both = self.pair(x)
        made = both[which] + plain.mean()
        for layer in self.layers:
            made = layer(made)
        if factor is not None:
            made = made * factor
        sizes = list(made.shape)
        assert len(sizes) == 3
        assert "left" in both
        return self.last(made.reshape(sizes[0], -1, sizes[-1]).mean(1))  # type: ignore[no-any-return]


class InPlace(Base):
    """Writing in place where nothing else looks."""

    def forward(self, x: Tensor) -> Tensor:
        made = self.layers[0](x).mean(1)
        made.sigmoid_()
        made *= self.scale * 3
        made += 1.0
        same = made
        same.tanh_()
        made[:, 1:].exp()
        filled = torch.zeros_like(made)
        filled.fill_(0.5)
        filled.copy_(made * filled)
        made.masked_fill_(torch.tensor([False, True, False]), 0.25)
        return self.last(made + filled)  # type: ignore[no-any-return]


class IntoParts(Base):
    """Writing through views, as masks of shifted windows and scans over time are built."""

    def forward(self, x: Tensor) -> Tensor:
        made = self.layers[0](x)
        regions = torch.zeros(1, 4, 3)
        regions[:, 1:3, :] = 1.0
        regions[:, 3:, 1:] = 2
        regions[:, :, -1] += 0.5
        made[:, 0] = torch.tanh(made[:, 1]) * regions[0, 2]
        made[:, 1:3, ::2] *= 2.0
        made.transpose(1, 2)[:, 0].add_(1.0)
        made.view(-1, 4, 3)[:, 2, 1:].unsqueeze(0).mul_(0.7)
        made[:, 3].t().mul_(0.5)
        part = made[:, :2]
        part[:, 1] = part[:, 0] + 1
        whole = made + regions
        return self.last(torch.tanh(whole).mean(1) + part.sum(1))  # type: ignore[no-any-return]


class Masks(Base):
    """Python's operators on boolean and integer tensors, with and without assignment."""

    def forward(self, x: Tensor) -> Tensor:
        seen, even = torch.ones(4, 4).tril() > 0, torch.arange(4) % 2 == 0
        mask = (seen & even) | (even ^ seen)
        mask &= seen
        mask |= torch.eye(4) > 0
        mask ^= even
        bits = torch.arange(4)
        bits <<= 2
        bits |= 1
        weights = torch.where(mask, (bits >> 1) + (bits & 3), 1).to(x.dtype) / 4
        weights.gt_(0.5)
        return self.last((weights + weights) @ torch.tanh(self.layers[0](x)).mean(1, keepdim=True).expand(-1, 4, -1))[
            :, 0
        ]  # type: ignore[no-any-return]


class Counting(Base):
    """A buffer that is written: it has its stored value for every sample."""

    def forward(self, x: Tensor) -> Tensor:
        self.scale.add_(1.0)
        return self.last(x.mean(1) * self.scale)  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", [OverShapes, OverContainers, InPlace])
@pytest.mark.parametrize("frozen", [False, True])
def test_a_script_gives_the_logits_of_the_module(
    kind: type[Base], frozen: bool, randomised: Any, export: Any, logits: Any
) -> None:
    module = randomised(kind())
    model = load_model(export("frozen" if frozen else "scripted", module)).resolve()
    for x in (X, X[:1], X[:, :2]):
        torch.testing.assert_close(logits(model, x), module(x), rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(("way", "kind"), crossed(["scripted", "frozen", "traced"], [IntoParts, Masks]))
def test_writing_in_place_gives_the_curvature_of_the_module(
    way: str, kind: type[Base], randomised: Any, export: Any, logits: Any, eager_hessian: Any
) -> None:
    module, y = randomised(kind()), torch.tensor([0, 1, 0, 1, 1])
    classifier = load_model(export(way, module, X))
    torch.testing.assert_close(logits(classifier.resolve(), X), module(X), rtol=1e-12, atol=1e-12)
    enclosure = wsb.analyze(classifier, wsb.Batch(X, y), wsb.Options(moments="none")).enclosure
    largest = float(torch.linalg.eigvalsh(eager_hessian(module, X, y))[-1])
    assert enclosure is not None
    assert enclosure.lambda_max.lower <= largest * (1 + 1e-9)
    assert largest * (1 - 1e-9) <= enclosure.lambda_max.upper <= largest * (1 + 1e-5)


def test_state_is_the_stored_one_each_time(randomised: Any, scripted: Any, logits: Any) -> None:
    module = randomised(Counting())
    expected = module.last(X.mean(1) * (module.scale + 1))
    model = load_model(scripted(module)).resolve()
    for _ in range(2):
        torch.testing.assert_close(logits(model, X), expected, rtol=1e-12, atol=1e-12)


def test_an_exception_raised_by_the_module_is_reported(randomised: Any, scripted: Any, logits: Any) -> None:
    model = load_model(scripted(randomised(OverShapes()))).resolve()
    with pytest.raises(ModelError, match="got 2 axes") as caught:
        logits(model, X[:, 0])
    assert caught.value.code == "evaluation_failed"


def test_a_wrong_feature_count_is_reported_with_the_operator(randomised: Any, scripted: Any, logits: Any) -> None:
    model = load_model(scripted(randomised(OverContainers()))).resolve()
    with pytest.raises(ModelError, match="aten::linear") as caught:
        logits(model, torch.zeros(2, 4, 7))
    assert caught.value.code == "evaluation_failed"


class OverValues(Base):
    def forward(self, x: Tensor) -> Tensor:
        made = self.last(x.mean(1))
        if bool(made.sum() > 0):
            made = made * 2
        return made  # type: ignore[no-any-return]


class WritesBesideAView(Base):
    def forward(self, x: Tensor) -> Tensor:
        made = self.last(x.mean(1))
        other = made[:, 1]
        made[:, 0] = 0.0
        return made + other.unsqueeze(1)  # type: ignore[no-any-return]


class WritesIntoAnUnknownCopy(Base):
    def forward(self, x: Tensor) -> Tensor:
        made = self.last(x.mean(1))
        made.contiguous()[:, 0].fill_(0.0)
        return made  # type: ignore[no-any-return]


class WritesUnderAView(Base):
    def forward(self, x: Tensor) -> Tensor:
        made = self.last(x.mean(1))
        view = made.view(-1, 2)
        made.add_(1.0)
        return view  # type: ignore[no-any-return]


class Detached(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layers[0](x).detach().mean(1))  # type: ignore[no-any-return]


class Stateful(Base):
    def forward(self, x: Tensor) -> Tensor:
        self.scale = self.scale + 1
        return self.last(x.mean(1) * self.scale)  # type: ignore[no-any-return]


class Random(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(x.mean(1) + torch.randn(3))  # type: ignore[no-any-return]


class OwnStatistics(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(nn.functional.batch_norm(x.mean(1), None, None, training=True))  # type: ignore[no-any-return]


class Recurrent(Base):
    def __init__(self) -> None:
        super().__init__()
        self.memory = nn.LSTM(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.memory(x)[0].mean(1))  # type: ignore[no-any-return]


REFUSED: dict[str, tuple[type[Base], str, str]] = {
    "a branch over values": (OverValues, "data_dependent_control_flow", "aten::Bool"),
    "writing beside a view": (WritesBesideAView, "unsupported_operator", "changed in place"),
    "writing into what may be a copy": (WritesIntoAnUnknownCopy, "unsupported_operator", "changed in place"),
    "writing under a view": (WritesUnderAView, "unsupported_operator", "changed in place"),
    "hidden parameters": (Detached, "unsupported_operator", "aten::detach"),
    "state": (Stateful, "unsupported_operator", "prim::SetAttr"),
    "random numbers": (Random, "unsupported_operator", "aten::randn"),
    "statistics of the batch": (OwnStatistics, "unsupported_operator", "running statistics"),
}


@pytest.mark.slow
def test_a_recurrent_layer_that_runs_over_the_samples_is_analysed_as_one_batch(scripted: Any) -> None:
    torch.manual_seed(0)
    module = Recurrent().eval()
    x, y = torch.randn(6, 4, 3), torch.arange(6) % 2
    options = wsb.Options(moments="none")
    report = wsb.analyze(load_model(scripted(module)), wsb.Batch(x.numpy(), y.numpy()), options)
    assert "samples_coupled" in {warning.code for warning in report.warnings}
    exact = module.double()
    names, values = zip(*exact.named_parameters(), strict=True)

    def loss(*parameters: Tensor) -> Tensor:
        logits = torch.func.functional_call(exact, dict(zip(names, parameters, strict=True)), (x.double(),))
        return nn.functional.cross_entropy(logits, y)

    rows = torch.autograd.functional.hessian(loss, values)
    H = torch.cat(
        [
            torch.cat([part.reshape(a.numel(), b.numel()) for part, b in zip(row, values, strict=True)], 1)
            for row, a in zip(rows, values, strict=True)
        ]
    )
    largest = float(torch.linalg.eigvalsh(H)[-1])
    assert report.enclosure is not None
    assert report.enclosure.lambda_max.lower <= largest * (1 + 1e-12)
    assert report.enclosure.lambda_max.upper >= largest * (1 - 1e-12)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_function_of_each_sample_is_refused_by_name(name: str, randomised: Any, scripted: Any) -> None:
    kind, code, text = REFUSED[name]
    batch = wsb.Batch(X.numpy(), torch.tensor([0, 1, 0, 1, 1]).numpy())
    with pytest.raises(ModelError, match=text) as caught:
        wsb.analyze(load_model(scripted(randomised(kind()))), batch)
    assert caught.value.code == code
    assert "ONNX" in caught.value.advice


def test_a_shape_known_to_the_trace_only_is_kept(randomised: Any, traced: Any, logits: Any) -> None:
    class Fixed(Base):
        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.tanh(x).view(x.size(0), 12)[:, :3])  # type: ignore[no-any-return]

    module = randomised(Fixed())
    model = load_model(traced(module, X[:2])).resolve()
    torch.testing.assert_close(logits(model, X), module(X), rtol=1e-12, atol=1e-12)


def test_two_inputs_are_taken_by_name(randomised: Any, scripted: Any) -> None:
    class Two(Base):
        def forward(self, left: Tensor, right: Tensor, scale: float = 2.0) -> Tensor:
            return self.last(torch.tanh(self.layers[0](left)) * right * scale)  # type: ignore[no-any-return]

    module = randomised(Two())
    classifier = load_model(scripted(module))
    assert [each.name for each in classifier.inputs] == ["left", "right"]
    model = classifier.resolve()
    left, right = X[:, 0], X[:, 1]
    torch.testing.assert_close(
        model.function(dict(model.parameters), {"right": right, "left": left}), module(left, right)
    )
    with pytest.raises(ModelError) as caught:
        model.function(dict(model.parameters), {"left": left})
    assert caught.value.code == "missing_input"


def test_an_input_that_is_no_tensor_is_refused(randomised: Any, scripted: Any) -> None:
    class Listed(Base):
        def forward(self, x: list[Tensor]) -> Tensor:
            return self.last(x[0])  # type: ignore[no-any-return]

    with pytest.raises(ModelError, match="'x'") as caught:
        load_model(scripted(randomised(Listed())))
    assert caught.value.code == "unsupported_input"


def test_integers_stay_integers(randomised: Any, scripted: Any, logits: Any) -> None:
    class Masked(Base):
        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            allowed = torch.arange(x.size(1)) < lengths.unsqueeze(1)
            hidden = torch.tanh(self.layers[0](x)).masked_fill(~allowed.unsqueeze(2), 0.0)
            return self.last(hidden.sum(1) / lengths.unsqueeze(1))  # type: ignore[no-any-return]

    module = randomised(Masked())
    lengths = torch.tensor([1, 2, 3, 4, 2])
    model = load_model(scripted(module)).resolve()
    torch.testing.assert_close(logits(model, X, lengths, names=("x", "lengths")), module(X, lengths))
    assert nonsmooth_operators(model.function, model.parameters, {"x": X, "lengths": lengths}) == ()
