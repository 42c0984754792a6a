"""The dense spectrum: blocks, asymmetry, zeros."""

from __future__ import annotations

import pytest
import torch

from wsb_engine.spectrum.dense import BLOCK, dense_spectrum


@pytest.mark.parametrize("size", [1, 7, BLOCK, BLOCK + 1, 2 * BLOCK + 3])
def test_the_spectrum_is_that_of_the_symmetric_part_whatever_the_blocks(size: int) -> None:
    H = torch.randn(size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    H = H + H.T + 1e-9 * torch.rand(size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mean, difference = (H + H.T) / 2, (H - H.T).abs().max() / H.abs().max()
    found = dense_spectrum(H)
    assert torch.equal(H, mean)
    assert found.asymmetry == float(difference)
    torch.testing.assert_close(found.eigenvalues, torch.linalg.eigvalsh(mean).flip(0), rtol=0, atol=0)


def test_an_asymmetry_in_a_far_corner_is_seen() -> None:
    H = torch.eye(BLOCK + 5, dtype=torch.float64)
    H[0, -1] = 0.25
    assert dense_spectrum(H).asymmetry == 0.25


def test_nothing_but_zeros_is_symmetric() -> None:
    assert dense_spectrum(torch.zeros(3, 3, dtype=torch.float64)).asymmetry == 0
