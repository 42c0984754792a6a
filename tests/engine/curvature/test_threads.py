"""Sums over samples that several threads share."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from wsb_engine.curvature.threads import Threads


@pytest.fixture(params=[2, 4])
def processors(request: pytest.FixtureRequest) -> Iterator[int]:
    """What torch may use."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("items", [1, 2, 5, 16])
def test_the_sum_is_that_of_all_terms_in_double_precision(count: int, items: int) -> None:
    terms = torch.randn(items, 7)
    total = Threads(count).sum(lambda i: terms[i].clone(), range(items))
    assert total.dtype == torch.float64
    torch.testing.assert_close(total, terms.double().sum(dim=0))


def test_the_same_terms_have_the_same_sum_whichever_thread_is_first() -> None:
    terms, threads = torch.randn(40, 100), Threads(3)

    def term(i: int) -> Tensor:
        time.sleep(float(torch.rand(())) / 500)
        return terms[i].clone()

    sums = [threads.sum(term, range(40)) for _ in range(5)]
    assert all(torch.equal(total, sums[0]) for total in sums)


def test_terms_are_made_at_the_same_time() -> None:
    meeting = threading.Barrier(2)

    def term(_: int) -> Tensor:
        meeting.wait(timeout=30)
        return torch.ones(1)

    assert float(Threads(2).sum(term, range(4))) == 4


def test_each_thread_uses_its_part_of_the_processors(processors: int) -> None:
    threads = Threads(2)
    found = threads.sum(lambda _: torch.tensor([float(torch.get_num_threads())]), range(2))
    assert float(found) == 2 * (processors // 2)
    assert torch.get_num_threads() == processors
    with ThreadPoolExecutor(1) as later:
        assert later.submit(torch.get_num_threads).result() == processors


def test_an_error_is_raised_once_all_threads_have_stopped() -> None:
    at_work: list[int] = []

    def term(i: int) -> Tensor:
        if i == 0:
            raise MemoryError(str(i))
        at_work.append(i)
        time.sleep(0.05)
        at_work.remove(i)
        return torch.zeros(1)

    threads = Threads(2)
    with pytest.raises(MemoryError):
        threads.sum(term, range(4))
    assert not at_work
    assert float(threads.sum(lambda i: torch.ones(1), range(4))) == 4


def test_threads_end_with_their_pool() -> None:
    others, threads = set(threading.enumerate()), Threads(3)
    threads.sum(lambda _: torch.zeros(1), range(3))
    own = set(threading.enumerate()) - others
    assert 1 <= len(own) <= 2
    del threads
    for thread in own:
        thread.join(timeout=30)
        assert not thread.is_alive()
