"""What a file has and its module has not, and the reverse."""

from __future__ import annotations

import io
import warnings
from typing import Any

import pytest
import torch
from support.exports import share_operators
from support.forms import full
from torch import Tensor, nn

import wsb_engine as wsb

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*is deprecated:DeprecationWarning")


def drawn(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for tensor in [*module.parameters(), *(b for b in module.buffers() if b.is_floating_point())]:
        tensor.data = 0.4 + 0.2 * torch.randn(tensor.shape, generator=generator).abs()
    return module.eval()


def exported(module: nn.Module, x: Tensor, **options: Any) -> wsb.Classifier:
    file = io.BytesIO()
    if options["dynamo"]:
        share_operators()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (x,), file, verbose=False, **options)
    return wsb.load_model(file.getvalue())


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.word, self.position = nn.Embedding(7, 4), nn.Embedding(12, 4)
        self.recurrent = nn.GRU(4, 4, batch_first=True, bidirectional=True)
        self.last = nn.Linear(8, 3)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.word(x) + self.position(torch.arange(x.shape[1]))
        return self.last(self.recurrent(h)[0].mean(1))


@pytest.mark.slow
def test_layouts_of_an_exporter_are_matched_by_value() -> None:
    module = drawn(Words())
    found = wsb.compare_parameters(exported(module, torch.zeros(2, 3, dtype=torch.long), dynamo=True), module)
    hows = {match.module: match.how for match in found.matches}
    assert hows["word.weight",] == "equal"
    assert hows["position.weight",] == "rows of a table"
    assert hows["recurrent.weight_ih_l0", "recurrent.weight_ih_l0_reverse"] == "merged"
    assert not found.only_in_file
    assert set(found.only_in_module) == {"unused.weight", "unused.bias"}
    assert not found.is_complete


@pytest.mark.parametrize("dynamo", [full(True), False])
def test_a_merged_batch_normalisation_is_named(dynamo: bool) -> None:
    module = drawn(nn.Sequential(nn.Conv1d(2, 4, 1), nn.BatchNorm1d(4), nn.Flatten(), nn.Linear(12, 3)))
    found = wsb.compare_parameters(exported(module, torch.randn(2, 2, 3), dynamo=dynamo), module)
    merged = {match.module for match in found.matches if match.how == "batch normalisation merged"}
    assert merged == {("0.weight", "1.weight"), ("0.bias", "1.bias")}
    assert not found.only_in_file
    assert not found.only_in_module
    assert "0.weight with 1.weight: batch normalisation merged" in str(found)
    assert not found.is_complete


def test_other_values_missing_ones_and_zeros_are_told() -> None:
    module = drawn(nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)))
    classifier = wsb.from_module(module)
    assert wsb.compare_parameters(classifier, module).is_complete
    with torch.no_grad():
        module[0].weight += 1
        module[2].bias.zero_()
    module.register_parameter("extra", nn.Parameter(torch.zeros(2)))
    found = wsb.compare_parameters(classifier, module)
    assert [match.file for match in found.matches if match.how == "other values"] == ["0.weight", "2.bias"]
    assert found.only_in_module == {"extra": "[2]: zero, which exporters leave out"}


def test_what_the_reader_left_out_is_found_among_the_constants() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.slope, self.last = nn.Parameter(torch.tensor(0.7)), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(x) * self.slope

    module = drawn(Scaled())
    found = wsb.compare_parameters(exported(module, torch.zeros(2, 4), dynamo=False), module)
    assert found.only_in_module == {"slope": "[]: the file stores it as slope; include it with the option parameters"}
