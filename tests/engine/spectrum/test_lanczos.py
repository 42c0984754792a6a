"""The Lanczos recurrence: its relation, its basis, breakdowns, resumption."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from wsb_engine.spectrum.lanczos import Lanczos

UNIT = 2.0**-53


def symmetric(n: int, seed: int = 0) -> torch.Tensor:
    A = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (A + A.T) / 2


def krylov(A: torch.Tensor, steps: int, seed: int = 0) -> Lanczos:
    lanczos = Lanczos(lambda v: A @ v, len(A), torch.device("cpu"), seed, UNIT)
    for _ in range(steps):
        lanczos.step()
    return lanczos


@pytest.mark.parametrize("steps", [1, 5, 30])
def test_the_recurrence_holds(steps: int) -> None:
    A = symmetric(40)
    lanczos = krylov(A, steps)
    Q, T = lanczos.basis.T, lanczos.tridiagonal
    residual = lanczos.scaling * A @ Q - Q @ T
    assert float(torch.linalg.vector_norm(residual[:, :-1])) < 1e-12
    assert float(torch.linalg.vector_norm(residual[:, -1])) == pytest.approx(lanczos.betas[-1], rel=1e-10)
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
    lanczos = krylov(A, 15)
    assert lanczos.exhausted
    values = torch.tensor(lanczos.ritz_values(), dtype=torch.float64)
    torch.testing.assert_close(values / lanczos.scaling, torch.linalg.eigvalsh(A), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="whole space"):
        lanczos.step()


def test_repeated_eigenvalues_are_found_through_breakdowns() -> None:
    eigenvalues = torch.tensor([3.0, 3.0, 3.0, 1.0, 1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    Q = torch.linalg.qr(symmetric(8))[0]
    lanczos = krylov(Q @ torch.diag(eigenvalues) @ Q.T, 8)
    assert lanczos.exhausted
    found = torch.tensor(lanczos.ritz_values(), dtype=torch.float64) / lanczos.scaling
    torch.testing.assert_close(found, eigenvalues.flip(0), rtol=0, atol=1e-12)


def test_an_exact_breakdown_restarts_in_the_complement() -> None:
    lanczos = krylov(2.0 * torch.eye(6, dtype=torch.float64), 6)
    assert lanczos.first_breakdown == 1
    assert lanczos.betas == [0.0] * 6
    assert lanczos.ritz_values() == pytest.approx([2.0 * lanczos.scaling] * 6, rel=1e-15)


def test_ritz_pairs_have_the_residuals_that_the_recurrence_says() -> None:
    A = symmetric(50)
    lanczos = krylov(A, 20)
    values, vectors = lanczos.ritz_pairs(20)
    _, inner = torch.linalg.eigh(lanczos.tridiagonal)
    fresh = torch.linalg.vector_norm(lanczos.scaling * A @ vectors - vectors * values, dim=0)
    torch.testing.assert_close(fresh, lanczos.betas[-1] * inner[-1].abs(), rtol=1e-6, atol=1e-12)


def spread(n: int, seed: int) -> torch.Tensor:
    """Outliers over a bulk, which Lanczos finds soon: orthogonality is then hard to keep."""
    values = torch.cat(
        [torch.tensor([1e3, 30.0, 29.0]), torch.randn(n - 3, generator=torch.manual_seed(seed))]
    ).double()
    Q = torch.linalg.qr(symmetric(n, seed))[0]
    A = Q @ torch.diag(values) @ Q.T
    return (A + A.T) / 2


@pytest.mark.parametrize("scale", [1.0, 1e-165, 1e160])
@pytest.mark.parametrize("matrix", [symmetric, spread, lambda n, seed: torch.eye(n, dtype=torch.float64)])
def test_each_step_is_off_by_no_more_than_the_run_says(matrix, scale: float) -> None:
    """In 80 bits: ‖σH q_j − γ_j q_{j−1} − α_j q_j − β_j q_{j+1}‖, less the rounding of the product."""
    n, steps = 60, 40
    A = matrix(n, 3) * scale
    lanczos = krylov(A, steps)
    exact = A.numpy().astype(np.longdouble) * np.longdouble(lanczos.scaling)
    Q = torch.cat([lanczos.basis, lanczos._next.unsqueeze(0)]).numpy().astype(np.longdouble)
    size = float(np.abs(exact).sum(axis=1).max())
    for j in range(steps):
        residual = exact @ Q[j] - lanczos.alphas[j] * Q[j] - lanczos.betas[j] * Q[j + 1]
        if j:
            residual -= lanczos.gammas[j] * Q[j - 1]
        assert np.sqrt((residual**2).sum()) <= lanczos.errors[j] + n * UNIT * size
    assert max(lanczos.errors) < 1e-13 * size


def test_the_factorisation_and_the_basis_are_off_by_no_more_than_the_run_says() -> None:
    A = spread(80, 1)
    lanczos = krylov(A, 50)
    exact = A.numpy().astype(np.longdouble) * np.longdouble(lanczos.scaling)
    Q, T = lanczos.basis.numpy().astype(np.longdouble).T, lanczos.tridiagonal.numpy()
    R = exact @ Q - Q @ T
    R[:, -1] -= lanczos.betas[-1] * lanczos._next.numpy()
    product = 80 * UNIT * float(np.abs(exact).sum(axis=1).max()) * np.sqrt(50)
    assert np.sqrt((R**2).sum()) <= lanczos.factorisation_error + product
    everything = np.concatenate([Q, lanczos._next.numpy()[:, None]], axis=1)
    defect = np.sqrt(((everything.T @ everything - np.eye(51)) ** 2).sum())
    assert defect <= lanczos.orthogonality(proven=True)
    assert lanczos.orthogonality(proven=True) < 1e-11


@pytest.mark.parametrize("scale", [1e-300, 1e-165, 1.0, 1e160, 1e300])
def test_no_size_underflows_or_overflows(scale: float) -> None:
    A = symmetric(30)
    lanczos, reference = krylov(A * scale, 12), krylov(A, 12)
    ritz = [value / lanczos.scaling / scale for value in lanczos.ritz_values()]
    assert ritz == pytest.approx([value / reference.scaling for value in reference.ritz_values()], rel=1e-9)


def test_products_that_round_at_random_show_in_their_homogeneity() -> None:
    A, noise = symmetric(200), 1e-7
    generator = torch.Generator().manual_seed(0)

    def product(v: torch.Tensor) -> torch.Tensor:
        image = A @ v
        error = torch.randn(200, generator=generator, dtype=torch.float64)
        return image + noise * float(image.norm()) / 200**0.5 * error

    lanczos = Lanczos(product, 200, torch.device("cpu"), 0, UNIT, homogeneity=True)
    for _ in range(15):
        lanczos.step()
    assert lanczos.products == 15 + 3
    assert 0.3 * noise < lanczos.homogeneity < 30 * noise
    assert min(lanczos.product_rounding()) >= 8 * lanczos.homogeneity * lanczos.norms[0]
