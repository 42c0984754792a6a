"""The recurrence in three vectors: its relation, its memory, its ends against dense spectra, and attacks on it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from support.forms import crossed, thinned

from wsb_engine.bounds.certificates import Enclosures, Premises
from wsb_engine.bounds.lanczos_polynomial import Recurrence, largest_eigenvalue_bound
from wsb_engine.bounds.rounding import Rounding
from wsb_engine.spectrum.confirmation import RitzResidual, confirm, outer_pairs, unconfirmed
from wsb_engine.spectrum.enclosure import Enclosing, enclose, finish
from wsb_engine.spectrum.lanczos import Lanczos
from wsb_engine.spectrum.run import Run
from wsb_engine.spectrum.three_vectors import ThreeVectors

CPU = torch.device("cpu")
UNITS = {torch.float64: 2.0**-53, torch.float32: 2.0**-24}
EXACT = Rounding("measured", 0.0)


def diagonal(values: np.ndarray, dtype: torch.dtype = torch.float64) -> Callable[[torch.Tensor], torch.Tensor]:
    """Products in ``dtype``; rounding is the same in any basis, so a diagonal is as good as a full matrix."""
    H = torch.from_numpy(values).to(dtype)
    return lambda v: (H * v.to(dtype)).double()


def three(product: Callable[[torch.Tensor], torch.Tensor], n: int, seed: int = 0, dtype: torch.dtype = torch.float64):
    return ThreeVectors(product, n, CPU, seed, UNITS[dtype], homogeneity=True)


def certified(
    run: Run, *, delta: float = 1e-6, gap: float = 1e-6, products: int = 150, second_pass: bool = True
) -> tuple[Enclosures, RitzResidual | None]:
    """The confirmed enclosure of σH."""
    run.step()
    enclosing = Enclosing(run, Premises(EXACT, None, delta, gap).scaled(run.scaling))
    found = enclose(enclosing, max_products=products)
    enclosing, found = finish(enclosing, found, EXACT)
    return confirm(enclosing, found, outer_pairs(run)) if second_pass else (unconfirmed(enclosing, found), None)


def holds(found: Enclosures, run: Run, values: np.ndarray) -> bool:
    ends = (found.lambda_max, float(values.max())), (found.lambda_min, float(values.min()))
    return all(end.lower <= run.scaling * value <= end.upper for end, value in ends)


def spectra(n: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    bulk = np.abs(rng.normal(size=n))
    return {
        "outliers": np.concatenate([[9.0, 5.0, 4.9], 0.1 * rng.normal(size=n - 3)]),
        "bulk": bulk,
        "power law": np.arange(1, n + 1) ** -1.5,
        "strong lower end": np.concatenate([[1.0, -30.0], 0.1 * bulk[2:]]),
        "cluster": np.concatenate([1 + 1e-10 * np.arange(5), 0.5 * bulk[5:] / bulk.max()]),
        "two points": np.concatenate([np.ones(n // 2), np.zeros(n - n // 2)]),
        "tiny": 1e-165 * np.concatenate([[3.0], bulk[1:]]),
        "huge": 1e160 * np.concatenate([[3.0], bulk[1:]]),
        "multiple of the identity": np.full(n, 2.5),
        "zero": np.zeros(n),
    }


@pytest.mark.parametrize(
    ("name", "dtype"),
    crossed(["outliers", "bulk", "tiny", "multiple of the identity"], [torch.float64, torch.float32]),
)
def test_each_step_is_off_by_no_more_than_the_run_says(name: str, dtype: torch.dtype) -> None:
    """In 80 bits, with the vectors that were kept: no orthogonality enters."""
    n, values = 300, spectra(300)[name]
    if dtype == torch.float32 and name == "tiny":
        values = values * 1e135
    run, vectors = three(diagonal(values, dtype), n, dtype=dtype), []
    while not run.ended and run.steps < 60:
        vectors.append(run._start() if run._next is None else run._next.clone())
        run.step()
    H = torch.from_numpy(values).to(dtype).numpy().astype(np.longdouble) * np.longdouble(run.scaling)
    Q = [q.numpy().astype(np.longdouble) for q in vectors]
    # Without the next vector, nothing is known of the last step.
    for j in range(run.steps - 1):
        residual = H * Q[j] - run.alphas[j] * Q[j] - run.betas[j] * Q[j + 1]
        if j:
            residual -= run.gammas[j] * Q[j - 1]
        product = 2 * UNITS[dtype] * float(np.abs(H).max())
        assert np.sqrt((residual**2).sum()) <= run.errors[j] + product
        # What h allows for the norm of the next vector, and what the error includes if it is cast.
        longer = (n / 2 + 2) * UNITS[torch.float64] + (UNITS[dtype] if dtype == torch.float32 else 0.0)
        assert np.sqrt((Q[j + 1] ** 2).sum()) <= 1 + longer
    if dtype == torch.float64 and name != "multiple of the identity":
        lost = np.abs(np.array([q.numpy() for q in vectors]) @ vectors[0].numpy())
        assert name != "outliers" or lost[1:].max() > 1e-6  # it is not orthogonality that makes this hold


@pytest.mark.parametrize("name", thinned(spectra(10), 6))
def test_both_ends_hold_as_with_a_basis(name: str) -> None:
    n, values = 400, spectra(400)[name]
    unit, product = UNITS[torch.float64], diagonal(values)
    runs = [kind(product, n, CPU, 3, unit, homogeneity=True) for kind in (Lanczos, ThreeVectors)]
    (full, _), (found, residual) = (certified(run) for run in runs)
    assert holds(full, runs[0], values)
    assert holds(found, runs[1], values)
    assert found.lambda_max.relative_gap <= max(1e-6, 1.1 * full.lambda_max.relative_gap)
    assert residual is not None
    assert residual.excess <= residual.explained
    # The second pass leaves the lower end at rounding.
    top = runs[1].scaling * float(values.max())
    assert top - found.lambda_max.lower <= max(1e-13 * top, 0.01 * found.lambda_max.width)


@pytest.mark.parametrize("second_pass", [True, False])
def test_earlier_steps_hold_too(second_pass: bool) -> None:
    """Ritz values of a run that goes on past the rank of H leave its spectrum by more than rounding."""
    values = np.array([np.float32(0.4129394), 0.0])
    run = three(diagonal(values, torch.float32), 2, 0, torch.float32)
    found, _ = certified(run, gap=1e-10, second_pass=second_pass)
    assert any(value > run.scaling * values[0] * 1.001 for value in run.ritz_values())
    assert len(found.history) > 5
    assert all(holds(step, run, values) for step in found.history)


@pytest.mark.parametrize("name", thinned(["outliers", "bulk", "power law", "strong lower end", "cluster"], 3))
def test_no_more_products_than_with_a_basis_up_to_a_gap_of_1e_6(name: str) -> None:
    values = spectra(3000)[name]
    counts = []
    for kind in (Lanczos, ThreeVectors):
        run = kind(diagonal(values), 3000, CPU, 0, UNITS[torch.float64], homogeneity=True)
        run.step()
        premises = Premises(EXACT, None, 1e-6, 1e-6, both=False)
        found = enclose(Enclosing(run, premises.scaled(run.scaling)), max_products=200)
        assert found.stopped_by == "gap"
        counts.append(found.products)
    full, found = counts
    assert found <= 1.25 * full


@pytest.mark.parametrize(
    ("name", "delta"),
    crossed(["outliers", "bulk", "strong lower end", "two points", "multiple of the identity"], [1e-3, 0.01]),
)
def test_single_precision_products_hold_the_spectrum_that_they_have(name: str, delta: float) -> None:
    values = spectra(2000)[name].astype(np.float32).astype(np.float64)
    run = three(diagonal(values, torch.float32), 2000, 1, torch.float32)
    found, _ = certified(run, delta=delta, gap=1e-2)
    assert holds(found, run, values)
    assert run._next is None or run._next.dtype == torch.float32
    if name == "outliers":
        assert found.lambda_max.relative_gap <= 1e-2


@pytest.mark.parametrize(("excess", "n"), crossed([0.0, 1e-15, 1e-13, 1e-11, 1e-9, 7e-5], [1000, 2500]))
def test_a_multiple_of_the_identity_with_one_larger_entry_is_not_excluded(excess: float, n: int) -> None:
    for seed in range(10):
        values = np.ones(n)
        values[n // 3] += excess
        run = three(diagonal(values), n, seed)
        found, _ = certified(run)
        assert holds(found, run, values)
        assert found.lambda_max.relative_gap < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("excess", [0.0, 7e-5, 1.2e-4])
def test_that_attack_in_single_precision(excess: float) -> None:
    for seed in range(10):
        values = np.ones(1000, dtype=np.float32)
        values[333] += excess
        run = three(diagonal(values, torch.float32), 1000, seed, torch.float32)
        found, _ = certified(run, delta=1e-3)
        assert holds(found, run, values.astype(np.float64))


@pytest.mark.parametrize("values", [[3.0], [0.0], [-2.0], [1.0, 1.0], [2.0, -5.0], [0.0, 0.0, 1e-300]])
def test_tiny_orders_end_in_a_breakdown(values: list[float]) -> None:
    exact = np.array(values)
    run = three(diagonal(exact), len(values))
    found, _ = certified(run)
    assert holds(found, run, exact)
    assert run.steps <= len(values) + 3
    if run.ended:
        with pytest.raises(ValueError, match="ended"):
            run.step()


def wrong_products_exclude_nothing(values: np.ndarray, seed: int, noise: float, delta: float) -> None:
    """Products with an error of known size in a direction that changes each time, so of no symmetric matrix at all."""
    n = len(values)
    Q = stats.ortho_group.rvs(n, random_state=seed % 1000)
    A = torch.from_numpy((Q * values) @ Q.T)
    A = (A + A.T) / 2
    generator = torch.Generator().manual_seed(seed)
    size = float(np.abs(values).max())

    def product(v: torch.Tensor) -> torch.Tensor:
        error = torch.randn(n, generator=generator, dtype=torch.float64)
        return A @ v + noise * size * error / torch.linalg.vector_norm(error)

    run = ThreeVectors(product, n, CPU, seed, UNITS[torch.float64])
    truth, known = torch.linalg.eigvalsh(A), noise * size + 4 * n * UNITS[torch.float64] * size
    start = run._start()
    vectors = torch.linalg.eigh(A)[1]
    while not run.ended and run.steps < 40:
        run.step()
    epsilons = [error + known * run.scaling for error in run.errors]
    for mirrored in (False, True):
        recurrence = Recurrence(run.alphas, run.betas, run.gammas, epsilons)
        recurrence = recurrence.mirrored if mirrored else recurrence
        outer = -float(truth[0]) if mirrored else float(truth[-1])
        # The event on which the bound rests, for any vector of the eigenspace.
        near = (-truth if mirrored else truth) >= outer - 1e-9 * size
        overlap = float(torch.linalg.vector_norm(vectors[:, near].T @ start))
        for k in {1, 2, 3, 5, 8, 13, 21, run.steps} - set(range(run.steps + 1, 22)):
            columns = (recurrence.alphas, recurrence.betas, recurrence.gammas, recurrence.epsilons)
            bound = largest_eigenvalue_bound(Recurrence(*(column[:k] for column in columns)), n, delta)
            assert bound >= (outer - 1e-8 * size) * run.scaling or overlap < 2 * delta


WRONG = given(
    st.lists(st.floats(-100, 100), min_size=2, max_size=30).map(
        lambda values: np.array([x if abs(x) > 1e-80 else 0.0 for x in values])
    ),
    st.integers(0, 2**31 - 1),
    st.sampled_from([0.0, 1e-12, 1e-8, 1e-4]),
    st.sampled_from([1e-6, 1e-3]),
)
test_wrong_products_up_to_epsilon_never_exclude_an_eigenvalue = settings(deadline=None, max_examples=20)(
    WRONG(wrong_products_exclude_nothing)
)
test_wrong_products_exclude_no_eigenvalue_on_more_examples = pytest.mark.slow(
    settings(deadline=None, max_examples=60)(WRONG(wrong_products_exclude_nothing))
)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_products() -> None:
    """Counted by torch's allocator hooks: every vector of P numbers that is alive at once."""
    n = 200_000
    values = torch.linspace(0, 1, n, dtype=torch.float64)
    peaks = {}
    for dtype in (torch.float64, torch.float32):
        for steps in (5, 40):
            run = three(lambda v: values * v, n, dtype=dtype)
            run.step()
            with Peak() as peak:
                while run.steps < steps:
                    run.step()
            peaks[dtype, steps] = peak.bytes / (8 * n)
    for dtype in UNITS:
        assert peaks[dtype, 40] <= peaks[dtype, 5] + 0.01


def test_a_second_pass_repeats_the_first_bit_by_bit() -> None:
    values = spectra(500)["outliers"]
    seen: list[torch.Tensor] = []

    def product(v: torch.Tensor) -> torch.Tensor:
        seen.append(v.clone())
        return torch.from_numpy(values) * v

    run = ThreeVectors(product, 500, CPU, 0, UNITS[torch.float64])
    for _ in range(30):
        run.step()
    first, seen[:] = list(seen), []
    x = run.combinations(torch.eye(30, dtype=torch.float64))
    assert len(seen) == 29
    assert all(torch.equal(a, b) for a, b in zip(first, seen, strict=False))
    assert torch.equal(x.T, torch.stack(first))


@pytest.mark.parametrize("dtype", UNITS)
@pytest.mark.parametrize("spare", [1, 2, 12, 30, 50])
def test_vectors_that_were_kept_take_no_products_and_change_no_bit(spare: int, dtype: torch.dtype) -> None:
    values = torch.from_numpy(spectra(500)["outliers"])
    runs = [ThreeVectors(lambda v: values * v, 500, CPU, 0, UNITS[dtype], spare=most) for most in (0, spare)]
    for run in runs:
        for _ in range(30):
            run.step()
    bare, kept = runs
    assert (kept.alphas, kept.betas, kept.gammas, kept.errors) == (bare.alphas, bare.betas, bare.gammas, bare.errors)
    weights = torch.from_numpy(np.random.default_rng(0).standard_normal((30, 3)))
    expected = bare.combinations(weights)
    for _ in range(2):  # adding them up leaves them as they are
        before, said = kept.products, kept.repeated
        assert torch.equal(kept.combinations(weights), expected)
        assert kept.products - before == said == 30 - min(spare, 30)
    for run in runs:
        run.step()
    assert kept.alphas == bare.alphas
    kept.forget()
    assert kept.repeated == bare.repeated == 30
    assert torch.equal(kept.combinations(weights), expected)


def test_a_run_that_is_over_holds_no_vector_and_gives_the_same_combinations() -> None:
    values = torch.linspace(-1, 1, 500, dtype=torch.float64)
    run = three(lambda v: values * v, 500)
    for _ in range(10):
        run.step()
    weights = torch.eye(10, dtype=torch.float64)[:, :2]
    before = run.combinations(weights)
    run.end()
    assert run.ended
    assert not any(isinstance(held, torch.Tensor) and len(held) == 500 for held in vars(run).values())
    assert torch.equal(run.combinations(weights), before)
    with pytest.raises(ValueError, match="ended"):
        run.step()


def test_products_that_are_not_reproducible_leave_a_lower_end_that_holds() -> None:
    values, calls = spectra(500)["outliers"], iter(range(10**6))

    def product(v: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(values) * v * (1 + 1e-3 * (next(calls) % 3))

    run = three(product, 500)
    found, _ = certified(run, products=30)
    assert found.lambda_max.lower <= run.scaling * float(values.max()) * (1 + 2e-3)


def test_without_a_second_pass_the_lower_end_is_a_rayleigh_quotient_of_the_first() -> None:
    values = spectra(1000)["outliers"]
    run = three(diagonal(values), 1000)
    found, residual = certified(run, second_pass=False)
    assert residual is None
    assert run.products == run.steps + 3
    assert holds(found, run, values)
    assert found.lambda_max.lower > 0.5 * run.scaling * float(values.max())


def test_the_isotropic_model_is_below_the_worst_case_and_above_the_truth_here() -> None:
    values = spectra(3000)["outliers"]
    run = three(diagonal(values), 3000)
    found, _ = certified(run)
    assert found.modelled is not None
    assert run.scaling * float(values.max()) <= found.modelled <= found.lambda_max.upper


class Peak:
    """Peak of the bytes of tensors that torch allocated inside the block, on the CPU."""

    bytes = 0

    def __enter__(self) -> Peak:
        from torch.profiler import ProfilerActivity, profile

        self._profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        self._profile.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._profile.__exit__(None, None, None)
        alive, self.bytes = 0, 0
        for event in self._profile.profiler.kineto_results.events():
            if event.name() == "[memory]":
                alive += event.nbytes()
                self.bytes = max(self.bytes, alive)
