"""Slots that tenants share."""

from __future__ import annotations

from contextlib import ExitStack, suppress

import pytest

from service.http.bodies import TooManyUploadsError
from service.kit.slots import Slots


def take(slots: Slots, stack: ExitStack, tenant: str, most: int = 1000) -> int:
    """Take as many slots as there are for a tenant; return how many."""
    taken = 0
    with suppress(TooManyUploadsError):
        while taken < most:
            stack.enter_context(slots.taken(tenant, TooManyUploadsError("full", advice="Wait.")))
            taken += 1
    return taken


def test_one_tenant_alone_takes_all() -> None:
    with ExitStack() as stack:
        assert take(Slots(64, tenants=1), stack, "a") == 64


def test_a_tenant_that_takes_all_it_can_leaves_room_for_every_other() -> None:
    slots = Slots(64, tenants=9)
    with ExitStack() as stack:
        taken = [take(slots, stack, tenant) for tenant in "abcde"]
    assert taken == [32, 16, 8, 4, 2]


@pytest.mark.slow
def test_tenants_that_take_in_turns_have_equal_shares() -> None:
    slots = Slots(60, tenants=3)
    with ExitStack() as stack:
        taken = {"a": 0, "b": 0}
        for _ in range(60):
            for tenant in taken:
                taken[tenant] += take(slots, stack, tenant, 1)
    assert taken == {"a": 20, "b": 20}


@pytest.mark.parametrize("tenants", [1, 5])
def test_what_is_given_back_can_be_taken_again(tenants: int) -> None:
    slots = Slots(4, tenants=tenants)
    for _ in range(3):
        with ExitStack() as stack:
            first = take(slots, stack, "a")
            assert first == (4 if tenants == 1 else 2)


def test_a_single_slot_can_be_taken() -> None:
    with ExitStack() as stack:
        assert take(Slots(1, tenants=2), stack, "a") == 1
