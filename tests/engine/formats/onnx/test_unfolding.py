"""Tensors that torch's exporter computed from parameters: undone if that is exact, else counted and named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.forms import full
from torch import Tensor, nn
from torch.nn import functional as F

import wsb_engine as wsb
from wsb_engine import load_model

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*is deprecated:DeprecationWarning")


class Probe(nn.Module):
    """Pooling by attention of a learned query, as the head of SigLIP has it."""

    def __init__(self) -> None:
        super().__init__()
        self.probe = nn.Parameter(torch.zeros(1, 1, 4))
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.attention(self.probe.expand(len(x), -1, -1), x, x, need_weights=False)[0][:, 0])


class Query(nn.Module):
    """A learned query of scaled dot-product attention."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(1, 2, 1, 2))
        self.key, self.last = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        keys = self.key(x).reshape(len(x), -1, 2, 2).transpose(1, 2)
        z = F.scaled_dot_product_attention(self.query.expand(len(x), -1, -1, -1), keys, keys)
        return self.last(z.flatten(1))


class Parts(nn.Module):
    """One kernel, some of its channels, and its mirror image."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.zeros(3, 4, 3))
        self.last = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2)
        h = F.conv1d(x, self.kernel, padding=1).tanh() + F.conv1d(x[:, :2], self.kernel[:, :2], padding=1).tanh()
        return self.last((h + F.conv1d(x, self.kernel.flip(2), padding=1)).mean(2))


class Scaled(nn.Module):
    """Logits with a learned scale, and a layer with a learned gain on each row of its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.gain = nn.Parameter(torch.zeros(5, 4)), nn.Parameter(torch.zeros(5, 1))
        self.scale = nn.Parameter(torch.zeros(()))
        self.last = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.linear(x.mean(1), self.weight * self.gain).tanh()) * self.scale.exp()


class Masked(nn.Module):
    """Attention with a learned bias of scores and a causal mask, both constant."""

    def __init__(self) -> None:
        super().__init__()
        self.bias, self.last = nn.Parameter(torch.zeros(3, 3)), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.full((3, 3), -torch.inf).triu(1)
        return self.last(((x @ x.transpose(1, 2) + (self.bias + mask)).softmax(-1) @ x).mean(1))


class Pooled(nn.Module):
    """Generalised mean pooling with a learned power."""

    def __init__(self) -> None:
        super().__init__()
        self.power = nn.Parameter(torch.zeros(1))
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.softplus(self.first(x)).pow(self.power).mean(1).pow(1.0 / self.power))


class Keys(nn.Module):
    """Scores of each head for learned keys, which the module repeats for all samples and heads."""

    def __init__(self) -> None:
        super().__init__()
        self.keys, self.last = nn.Parameter(torch.zeros(2, 2, 3)), nn.Linear(18, 3)

    def forward(self, x: Tensor) -> Tensor:
        heads = x.unflatten(2, (2, 2)).transpose(1, 2).reshape(-1, 3, 2)
        scores = torch.bmm(heads, self.keys.repeat(len(x), 1, 1))
        return self.last(scores.reshape(len(x), -1).tanh())


class Recurrent(nn.Module):
    """A plain recurrent layer, whose first step from zero is its second bias."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.RNN(4, 2, batch_first=True), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layer(x)[0].mean(1))


def drawn(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.7 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def spectrum(function: Callable[[dict[str, Tensor]], Tensor], parameters: dict[str, Tensor]) -> Tensor:
    """Eigenvalues of the loss's Hessian, by double backward in float64."""
    tensors = {name: tensor.detach().double().requires_grad_() for name, tensor in parameters.items()}
    loss = F.cross_entropy(function(tensors), torch.arange(5) % 3)
    gradient = torch.autograd.grad(loss, list(tensors.values()), create_graph=True)
    rows = (
        torch.autograd.grad(each, list(tensors.values()), retain_graph=True, materialize_grads=True)
        for each in torch.cat([part.reshape(-1) for part in gradient])
    )
    return torch.linalg.eigvalsh(torch.stack([torch.cat([part.reshape(-1) for part in row]) for row in rows]))


@pytest.mark.parametrize(
    ("make", "samples"),
    [
        full(Probe, 1),
        (Probe, 2),
        full(Query, 1),
        full(Query, 3),
        full(Parts, 2),
        full(Pooled, 2),
        full(Recurrent, 2),
        full(Keys, 3),
    ],
)
def test_what_can_be_undone_has_the_spectrum_of_the_module(make: Any, samples: int, export: Any) -> None:
    module = drawn(make())
    x = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(1))
    classifier = load_model(export(module, x[:samples], dynamo=True, opset=18))
    model = classifier.resolve()
    assert model.warnings == ()
    assert sum(tensor.numel() for tensor in model.parameters.values()) == sum(p.numel() for p in module.parameters())
    module = module.double()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        expected = spectrum(
            lambda tensors: torch.func.functional_call(module, tensors, x.double()), dict(module.named_parameters())
        )
    (name,) = (each.name for each in classifier.inputs)
    found = spectrum(lambda tensors: model.function(tensors, {name: x.double()}), dict(model.parameters))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_bias_with_a_mask_folded_in_is_named_and_left_out(export: Any) -> None:
    model = load_model(export(drawn(Masked()), torch.randn(2, 3, 4), dynamo=True, opset=18)).resolve()
    assert set(model.parameters) == {"last.weight", "last.bias"}
    ((code, message),) = model.warnings
    assert code == "left_out_parameters"
    assert "from [bias]" in message
    assert "name them in parameters" not in message
    assert "torch.export.save" in message


def test_what_cannot_be_undone_counts_and_is_named(export: Any) -> None:
    module = drawn(Scaled())
    classifier = load_model(export(module, torch.randn(2, 3, 4), dynamo=True, opset=18))
    model = classifier.resolve()
    assert sum(tensor.numel() for tensor in model.parameters.values()) == 20 + 18 + 1
    ((code, message),) = model.warnings
    assert code == "derived_parameters"
    assert "from [gain, weight]" in message
    assert "from [scale]" in message
    comparison = wsb.compare_parameters(classifier, module)
    assert not comparison.is_complete
    assert set(comparison.only_in_module) == {"weight", "gain", "scale"}
    assert "computed from gain and weight" in str(comparison)
