"""Eigenvectors, which reports leave out, against a dense solver."""

from __future__ import annotations

import pytest
import torch
from support.golden import Golden

import wsb_engine as wsb
from wsb_engine.analysis.monitor import Monitor
from wsb_engine.analysis.problem import pose
from wsb_engine.options import Options
from wsb_engine.spectrum.dense import dense_spectrum, form_hessian

NAME = "paper_three_layer_tanh"


def hessian() -> torch.Tensor:
    case, options = Golden(NAME), Options()
    posed = pose(wsb.from_module(case.module()), wsb.Batch(case.x, case.y), options, Monitor(options, None, 0.0))
    return form_hessian(posed.hessian_product(), memory=1 << 30)


def test_dense_eigenvectors_diagonalise_the_hessian() -> None:
    H = hessian()
    found = dense_spectrum(H.clone(), eigenvectors=True)
    assert found.eigenvectors is not None
    V = found.eigenvectors
    torch.testing.assert_close(H @ V, V * found.eigenvalues, rtol=0, atol=1e-13)
    torch.testing.assert_close(V.T @ V, torch.eye(len(H), dtype=torch.float64), rtol=0, atol=1e-12)
    assert found.eigenvalues.tolist() == sorted(found.eigenvalues.tolist(), reverse=True)
    assert dense_spectrum(H).eigenvectors is None


@pytest.mark.parametrize("source", ["module", "onnx"])
def test_the_largest_pairs_equal_those_of_a_dense_solver(source: str) -> None:
    case = Golden(NAME)
    classifier = wsb.from_module(case.module()) if source == "module" else wsb.load_model(case.onnx())
    found = wsb.eigenpairs(classifier, wsb.Batch(case.x, case.y), wsb.Options(top=4))
    values, vectors = torch.linalg.eigh(hessian())
    scale = float(values.abs().max())
    assert found.converged
    assert found.eigenvectors.shape == (len(values), 4)
    torch.testing.assert_close(found.eigenvalues, values.flip(0)[:4], rtol=0, atol=1e-10 * scale)
    assert float(found.residuals.max()) <= 1e-8 * scale
    # The sign of an eigenvector is free. The golden file and the module have their tensors in the same order.
    overlap = (found.eigenvectors * vectors.flip(1)[:, :4]).sum(dim=0).abs()
    torch.testing.assert_close(overlap, torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-8)


def test_entries_follow_the_tensors_of_the_report() -> None:
    case = Golden(NAME)
    classifier, batch = wsb.load_model(case.onnx()), wsb.Batch(case.x, case.y)
    last = tuple(tensor.name for tensor in wsb.analyze(classifier, batch).model.parameters.tensors[-2:])
    options = wsb.Options(parameters=last, top=2)
    found = wsb.eigenpairs(classifier, batch, options)
    parameters = wsb.analyze(classifier, batch, options).model.parameters
    assert [tensor.name for tensor in parameters.tensors] == list(last)
    assert len(found.eigenvectors) == parameters.count


def test_the_smallest_pairs_are_directions_of_negative_curvature() -> None:
    case = Golden(NAME)
    found = wsb.eigenpairs(wsb.load_model(case.onnx()), wsb.Batch(case.x, case.y), wsb.Options(top=2), which="smallest")
    H = hessian()
    values, vectors = torch.linalg.eigh(H)
    scale = float(values.abs().max())
    torch.testing.assert_close(found.eigenvalues, values[:2], rtol=0, atol=1e-10 * scale)
    assert float(values[0]) < 0
    overlap = (found.eigenvectors * vectors[:, :2]).sum(dim=0).abs()
    torch.testing.assert_close(overlap, torch.ones(2, dtype=torch.float64), rtol=0, atol=1e-6)
    assert float((H @ found.eigenvectors - found.eigenvectors * found.eigenvalues).norm()) < 1e-7 * scale
