"""The Lanczos recurrence: its relation, its basis, breakdowns, resumption."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from wsb_engine.spectrum.lanczos import Lanczos

UNIT = float(np.finfo(np.float64).eps)


def symmetric(n: int, seed: int = 0) -> torch.Tensor:
    A = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (A + A.T) / 2


def krylov(A: torch.Tensor, steps: int, seed: int = 0) -> Lanczos:
    run = Lanczos(lambda v: A @ v, len(A), torch.device("cpu"), seed, UNIT)
    for _ in range(steps):
        run.step()
    return run


@pytest.mark.parametrize("steps", [1, 5, 30])
def test_the_recurrence_holds(steps: int) -> None:
    A = symmetric(40)
    run = krylov(A, steps)
    Q, T = run.basis.T, run.tridiagonal
    residual = A @ Q - Q @ T
    assert float(torch.linalg.vector_norm(residual[:, :-1])) < 1e-12
    assert float(torch.linalg.vector_norm(residual[:, -1])) == pytest.approx(run.betas[-1], rel=1e-10)
    torch.testing.assert_close(Q.T @ Q, torch.eye(steps, dtype=torch.float64), rtol=0, atol=1e-13)


def test_a_run_can_be_continued() -> None:
    A = symmetric(30)
    whole, resumed = krylov(A, 12), krylov(A, 5)
    for _ in range(7):
        resumed.step()
    assert whole.alphas == resumed.alphas
    assert whole.betas == resumed.betas


def test_a_complete_basis_has_all_eigenvalues_and_no_further_step() -> None:
    A = symmetric(15)
    run = krylov(A, 15)
    assert run.exhausted
    torch.testing.assert_close(
        torch.tensor(run.leading_ritz_values(15), dtype=torch.float64), torch.linalg.eigvalsh(A), rtol=0, atol=1e-12
    )
    with pytest.raises(ValueError, match="whole space"):
        run.step()


def test_repeated_eigenvalues_are_found_through_breakdowns() -> None:
    eigenvalues = torch.tensor([3.0, 3.0, 3.0, 1.0, 1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    Q = torch.linalg.qr(symmetric(8))[0]
    run = krylov(Q @ torch.diag(eigenvalues) @ Q.T, 8)
    assert run.first_breakdown == 3
    assert run.betas.count(0.0) >= 3
    found = torch.tensor(run.leading_ritz_values(8), dtype=torch.float64)
    torch.testing.assert_close(found, eigenvalues.flip(0), rtol=0, atol=1e-12)


def test_ritz_pairs_have_the_residuals_that_the_recurrence_says() -> None:
    A = symmetric(50)
    run = krylov(A, 20)
    values, vectors = run.ritz_pairs()
    _, inner = torch.linalg.eigh(run.tridiagonal)
    fresh = torch.linalg.vector_norm(A @ vectors - vectors * values, dim=0)
    torch.testing.assert_close(fresh, run.betas[-1] * inner[-1].abs(), rtol=1e-6, atol=1e-12)
