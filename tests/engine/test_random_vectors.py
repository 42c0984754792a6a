"""Random vectors: published words of the generator, the quantile in many digits, their law, and their independence."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import torch
from scipy import stats

from wsb_engine import random_vectors
from wsb_engine.random_vectors import gaussian, philox, uniform

FULL = 0xFFFFFFFF
FIRST = [-0.2558159702035155, 0.6301836564311267, 1.9148032727702817, 0.5070237393399029]


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((FULL, FULL, FULL, FULL), (FULL, FULL), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_the_generator_gives_the_words_that_its_authors_publish(
    counter: tuple[int, ...], key: tuple[int, int], words: tuple[int, ...]
) -> None:
    assert tuple(int(word) for word in philox([torch.tensor([c]) for c in counter], key)) == words


def test_the_quantile_is_exact_to_a_few_units() -> None:
    powers = [2.0**-k - 0.5 for k in range(2, 54)]
    centred = torch.tensor([*powers, 0.425, -0.4250000001, 2.0**-53, 0.3, -0.1], dtype=torch.float64)
    found = random_vectors._quantile(centred.clone())
    with mpmath.workdps(60):
        for x, z in zip(centred.tolist(), found.tolist(), strict=True):
            want = mpmath.sqrt(2) * mpmath.erfinv(2 * mpmath.mpf(x))
            assert abs(z - want) <= 4e-15 * abs(want)


def test_the_numbers_are_normal() -> None:
    z = gaussian(400_000, 5).numpy()
    assert stats.kstest(z, "norm").pvalue > 1e-3
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (6, 15, 10170)):
        assert abs((z**power).mean() - moment) <= 5 * np.sqrt(variance / len(z))
    assert stats.kstest(uniform(400_000, 5).numpy() + 0.5, "uniform").pvalue > 1e-3


def test_tails_are_as_heavy_as_they_should_be() -> None:
    z = gaussian(4_000_000, 11).abs()
    for limit in (3.0, 4.0, 4.8):
        expected = 2 * stats.norm.sf(limit) * len(z)
        assert abs(int((z > limit).sum()) - expected) <= 5 * np.sqrt(expected)


def test_seeds_and_streams_are_independent_and_neighbours_too() -> None:
    draws = [gaussian(100_000, seed, stream) for seed in (0, 1, 2**63 - 1) for stream in (0, 1, 2**32)]
    draws += [draws[0].roll(1), draws[0].roll(2)]
    correlations = np.corrcoef(torch.stack(draws).numpy())
    np.fill_diagonal(correlations, 0)
    assert np.abs(correlations).max() < 5 / np.sqrt(100_000)


@pytest.mark.parametrize("count", [0, 1, 2, 5, 999])
def test_a_number_depends_on_its_place_alone(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = gaussian(1000, 3, 4)
    assert torch.equal(gaussian(count, 3, 4), whole[:count])
    monkeypatch.setattr("wsb_engine.random_vectors.TILE", {"cpu": 7})
    assert torch.equal(gaussian(1000, 3, 4), whole)


def test_the_first_numbers_stay_what_they_are() -> None:
    """Reports are reproducible: these change only with a new version."""
    assert gaussian(4, 0).tolist() == pytest.approx(FIRST, rel=1e-15)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_draws_the_same_bits() -> None:
    there, here = (gaussian(3_000_001, 1, 2, torch.device(device)).cpu() for device in ("cuda", "cpu"))
    assert torch.equal(there, here)
