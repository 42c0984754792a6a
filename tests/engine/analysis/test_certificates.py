"""How soon enclosures close on networks like those in use, and whether they hold in float32."""

from __future__ import annotations

import importlib.util
import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from support.forms import full
from torch import Tensor, nn

import wsb_engine as wsb

GAP = 1e-6
SAMPLES = 200

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


def digits() -> wsb.Batch:
    from sklearn.datasets import load_digits  # which takes long, in every process that collects these tests

    x, y = load_digits(return_X_y=True)
    return wsb.Batch(x[:SAMPLES] / 16, y[:SAMPLES])


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))


def conv() -> nn.Module:
    return nn.Sequential(
        *(nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 4, 3, stride=2), nn.Tanh(), nn.Conv2d(4, 6, 2), nn.Tanh()),
        *(nn.Flatten(), nn.Linear(24, 10)),
    )


class Encoder(nn.Module):
    """Over the rows of an image, or parts of rows."""

    def __init__(self, width: int = 8, layers: int = 2) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, 2, 12, activation="gelu", batch_first=True, dropout=0.0)
        self.body, self.out = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.out(self.body(x.reshape(len(x), -1, self.out.in_features)).mean(dim=1))
        return z


def small_mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 4), nn.Tanh(), nn.Linear(4, 10))


def small_conv() -> nn.Module:
    return nn.Sequential(
        *(nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 2, 3, stride=2), nn.Tanh(), nn.Conv2d(2, 3, 2), nn.Tanh()),
        *(nn.Flatten(), nn.Linear(12, 10)),
    )


def small_encoder() -> nn.Module:
    return Encoder(width=4, layers=1)


def trained(module: nn.Module, batch: wsb.Batch, steps: int) -> nn.Module:
    x, y = batch.x["x"].float(), torch.as_tensor(batch.y)
    optimizer = torch.optim.Adam(module.parameters(), 1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(x), y).backward()
        optimizer.step()
    return module


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return build().eval()


def products_to(report: wsb.Report, gap: float) -> int | None:
    """The first number of products after which λ_max is enclosed this tightly, relatively."""
    assert report.enclosure is not None
    assert report.enclosure.convergence is not None
    for row in report.enclosure.convergence:
        top = row.lambda_max
        if top.upper - top.lower <= gap * abs(top.lower):
            return row.products
    return None


def test_a_trained_mlp_is_enclosed_for_certain_within_thirty_products() -> None:
    batch = digits()
    report = wsb.analyze(wsb.from_module(trained(seeded(mlp), batch, 150)), batch, wsb.Options(max_products=30))
    assert report.enclosure is not None
    top = report.enclosure.lambda_max
    assert top.kind == "deterministic"
    assert top.relative_gap is not None
    assert top.relative_gap < GAP


def test_with_the_largest_eigenvalue_alone_the_run_stops_by_itself_within_thirty_products() -> None:
    batch = digits()
    options = wsb.Options(ends="largest", moments="none", max_products=300)
    enclosure = wsb.analyze(wsb.from_module(trained(seeded(mlp), batch, 150)), batch, options).enclosure
    assert enclosure is not None
    assert enclosure.hessian_vector_products <= 30
    gaps = enclosure.lambda_max.relative_gap, enclosure.lambda_min.relative_gap
    assert None not in gaps
    assert gaps[0] <= GAP < gaps[1]


@pytest.mark.parametrize("build", [mlp, conv, full(Encoder)])
def test_an_untrained_network_is_enclosed_within_eighty_products(build: Callable[[], nn.Module]) -> None:
    options = wsb.Options(moments="none", ends="largest", max_products=80)
    report = wsb.analyze(wsb.from_module(seeded(build)), digits(), options)
    needed = products_to(report, GAP)
    print(build.__name__, report.model.parameters.count, needed)
    assert needed is not None
    assert needed <= 80


def magika() -> Path:
    found = importlib.util.find_spec("magika")
    places = found.submodule_search_locations if found is not None else None
    if not places:
        missing = "magika is not installed: pip install --no-deps -r requirements-models.lock"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    return Path(next(iter(places))) / "models/standard_v3_3/model.onnx"


@pytest.mark.slow
def test_a_published_classifier_is_enclosed_within_eighty_products() -> None:
    rng = np.random.default_rng(0)
    batch = wsb.Batch(rng.integers(0, 256, (2, 2048)), rng.integers(0, 200, 2))
    report = wsb.analyze(wsb.load_model(magika()), batch, wsb.Options(moments="none", max_products=80))
    assert report.enclosure is not None
    assert report.enclosure.lambda_max.failure_probability == 1e-6
    needed = products_to(report, GAP)
    assert needed is not None
    assert needed <= 80


def onnx(module: nn.Module, x: Tensor) -> bytes:
    buffer = io.BytesIO()
    torch.onnx.export(
        *(module, (x[:2],), buffer), dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "n"}}, verbose=False
    )
    return buffer.getvalue()


def torchscript(module: nn.Module, x: Tensor) -> bytes:
    buffer = io.BytesIO()
    with torch.no_grad():
        torch.jit.save(torch.jit.trace(module, x[:2], check_trace=False), buffer)
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize(
    ("build", "export"),
    [
        *((small_mlp, onnx), (small_conv, torchscript), full(small_encoder, onnx)),
        *(full(small_mlp, torchscript), full(small_conv, onnx), full(small_encoder, torchscript)),
    ],
)
def test_the_ends_and_the_top_of_an_export_equal_its_dense_spectrum(
    build: Callable[[], nn.Module], export: Callable[[nn.Module, Tensor], bytes]
) -> None:
    small = wsb.Batch(digits().x["x"][:24], digits().y[:24])
    classifier = wsb.load_model(export(seeded(build), small.x["x"].float()))
    dense = wsb.analyze(classifier, small, wsb.Options(spectrum="dense", moments="none", enclosure=False))
    top = wsb.analyze(classifier, small, wsb.Options(spectrum="top", moments="none", relative_gap=1e-10))
    assert dense.spectrum is not None
    assert top.spectrum is not None
    assert top.enclosure is not None
    eigenvalues = np.array(dense.spectrum.eigenvalues)
    scale = np.abs(eigenvalues).max()
    np.testing.assert_allclose(top.spectrum.eigenvalues, eigenvalues[:10], rtol=0, atol=1e-8 * scale)
    assert abs(top.enclosure.lambda_max.lower - eigenvalues[0]) <= 1e-8 * scale
    assert abs(top.enclosure.lambda_min.upper - eigenvalues[-1]) <= 1e-8 * scale
    assert all(check.passed for check in (*dense.checks, *top.checks)), (dense.checks, top.checks)


@pytest.mark.slow
def test_the_moments_of_the_density_agree_with_the_exact_ones() -> None:
    batch = wsb.Batch(digits().x["x"][:60], digits().y[:60])
    report = wsb.analyze(wsb.from_module(seeded(small_mlp)), batch, wsb.Options(density=True, enclosure=False))
    assert report.moments is not None
    assert report.spectrum is not None
    assert report.spectrum.density is not None
    density, P = report.spectrum.density, report.model.parameters.count
    assert abs(density.mean - report.moments.trace / P) <= 4 * density.mean_error
    assert abs(density.second_moment - report.moments.frobenius_squared / P) <= 4 * density.second_moment_error


def confident(seed: int) -> tuple[wsb.Classifier, wsb.Batch]:
    """A random network on inputs of a random scale; in two of three cases p − y is some millionths for most samples."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    features, hidden, classes = (int(rng.integers(low, high)) for low, high in ((2, 12), (2, 16), (2, 6)))
    act = [nn.Tanh(), nn.Sigmoid(), nn.GELU(), nn.SiLU(), nn.Softplus()][seed % 5]
    module = nn.Sequential(nn.Linear(features, hidden), act, nn.Linear(hidden, classes))
    x = torch.randn(30, features) * float(10 ** rng.uniform(-1, 2))
    y = torch.randint(classes, (30,))
    if seed % 3:
        with torch.no_grad():
            z = module(x)
            y = z.argmax(dim=1)
            best = z.topk(2, dim=1).values
            sure = 12 / float((best[:, 0] - best[:, 1]).median())
            module[2].weight *= sure
            module[2].bias *= sure
    return wsb.from_module(module), wsb.Batch(x, y)


@pytest.mark.parametrize("seeds", [6, full(60)])
def test_float32_enclosures_hold_the_float64_eigenvalues(seeds: int) -> None:
    for seed in range(seeds):
        classifier, batch = confident(seed)
        single = wsb.analyze(classifier, batch, wsb.Options(dtype="float32", max_products=40))
        double = wsb.analyze(classifier, batch, wsb.Options(dtype="float64", spectrum="dense", enclosure=False))
        assert single.enclosure is not None
        assert double.spectrum is not None
        largest, smallest = double.spectrum.eigenvalues[0], double.spectrum.eigenvalues[-1]
        assert single.enclosure.lambda_max.lower <= largest <= single.enclosure.lambda_max.upper, seed
        assert single.enclosure.lambda_min.lower <= smallest <= single.enclosure.lambda_min.upper, seed


def test_float32_keeps_the_curvature_of_a_confident_model() -> None:
    classifier, batch = confident(1)
    single, double = (wsb.analyze(classifier, batch, wsb.Options(dtype=dtype)) for dtype in ("float32", "float64"))
    assert double.loss.value < 0.1
    assert single.moments is not None
    assert double.moments is not None
    assert single.moments.frobenius_squared == pytest.approx(double.moments.frobenius_squared, rel=1e-3)
    assert single.moments.trace == pytest.approx(double.moments.trace, rel=1e-3)
